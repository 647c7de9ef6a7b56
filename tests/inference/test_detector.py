"""The detector: any picture in, boxes in its own pixels out."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from efficientdet.boxes import encode_boxes
from efficientdet.detections import Detections
from efficientdet.errors import ImageError, SettingError, UnknownNameError, WeightsError
from efficientdet.family import MODELS
from efficientdet.images.convert import RgbImage
from efficientdet.images.letterbox import LITE
from efficientdet.inference.detector import Detector, load
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.video.frames import Video
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.info import CheckpointInfo

SPEC = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=64)
INFO = CheckpointInfo(SPEC, ("cat", "dog"), (7, 3), LITE)


class Planted(EfficientDet):
    """Sees white rectangles: the anchor at one gives its exact box, as class 1."""

    # Of all inputs; of the class, for the engine runs a copy of the network.
    shapes: ClassVar[list[tuple[int, ...]]] = []

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        self.shapes.append(tuple(images.shape))
        anchors = self.anchors((images.shape[2], images.shape[3]))
        logits = torch.full((len(images), len(anchors), self.num_classes), -20.0)
        deltas = torch.zeros(len(images), len(anchors), 4)
        for i, image in enumerate(images):
            rows, columns = torch.nonzero(image[0] > 0.01, as_tuple=True)
            if len(rows):
                box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
                target = (box[:2] + box[2:]) / 2
                centers = (anchors[:, :2] + anchors[:, 2:]) / 2
                nearest = int((centers - target).square().sum(1).argmin())
                logits[i, nearest, 1] = 5.0
                deltas[i, nearest] = encode_boxes(box, anchors[nearest])
        return [logits], [deltas]


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(SPEC, 2)


@pytest.fixture(scope="module")
def guessing() -> EfficientDet:
    """A network with random weights that sees many things everywhere."""
    torch.manual_seed(0)
    model = EfficientDet(SPEC, 2).eval()
    with torch.no_grad():
        for head in (model.class_head, model.box_head):
            head.predict.pointwise.weight.mul_(20)
            head.predict.pointwise.bias.fill_(0)
    return model


def scene(width: int, height: int, box: tuple[int, int, int, int]) -> RgbImage:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def noise(height: int, width: int, seed: int = 0) -> RgbImage:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_equal(first: Detections, second: Detections, tolerance: float = 0.0) -> None:
    assert len(first) == len(second)
    np.testing.assert_allclose(first.boxes_xyxy, second.boxes_xyxy, atol=tolerance)
    np.testing.assert_allclose(first.scores, second.scores, atol=tolerance)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.image_size == second.image_size


# ---- one picture, in every form
def test_every_form_of_a_picture_gives_the_same(guessing: EfficientDet, tmp_path: Path) -> None:
    detector = Detector(guessing, INFO)
    image = noise(50, 70)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    expected = detector.predict(image)
    assert 0 < len(expected) <= 100
    buffer = io.BytesIO(path.read_bytes())
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for source in (str(path), path, path.read_bytes(), buffer, Image.open(path), tensor, tensor.float() / 255):
        found = detector.predict(source)
        assert_equal(found, expected)
        assert found.source == (str(path) if isinstance(source, (str, Path)) else None)
        np.testing.assert_array_equal(found.image, image)


def test_what_detections_say_of_themselves(planted: Planted) -> None:
    found = Detector(planted, INFO).predict(scene(100, 80, (10, 20, 50, 60)))
    assert found.class_names == ("cat", "dog") and found.category_ids == (7, 3)
    assert found.labels.tolist() == [1] and found.scores[0] == pytest.approx(0.9933, abs=1e-3)
    assert found.image_size == (80, 100)
    assert found.to_coco(4)[0]["category_id"] == 3


@pytest.mark.parametrize("size", [(128, 128), 128, 64, (96, 160), (160, 96), (50, 70), None])
@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (100, 80, (10, 20, 50, 60)),
        (300, 90, (200, 10, 290, 80)),
        (33, 200, (0, 100, 33, 200)),
        (64, 64, (0, 0, 64, 64)),
    ],
)
def test_boxes_come_back_in_pixels_of_the_picture(
    size: Any, width: int, height: int, box: tuple[int, int, int, int], planted: Planted
) -> None:
    detector = Detector(planted, INFO, image_size=size)
    found = detector.predict(scene(width, height, box))
    used = (64, 64) if size is None else (size, size) if isinstance(size, int) else size
    assert planted.shapes[-1] == (1, 3, *used)
    pixel = 1 / min(used[0] / height, used[1] / width)  # of the network, in pixels of the picture
    # The letterbox gives the picture whole pixels, up to one fewer than the scale says.
    np.testing.assert_allclose(found.boxes_xyxy, [box], atol=1.5 * pixel + 1e-3)


def test_a_picture_with_orientation_is_seen_upright(planted: Planted, tmp_path: Path) -> None:
    upright = scene(60, 100, (10, 70, 30, 95))
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    found = Detector(planted, INFO, image_size=100).predict(tmp_path / "a.png")
    assert found.image_size == (100, 60)
    np.testing.assert_allclose(found.boxes_xyxy, [[10, 70, 30, 95]], atol=1.01)


# ---- many pictures
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_a_list_of_mixed_sizes_equals_one_by_one(batch_size: int, guessing: EfficientDet) -> None:
    detector = Detector(guessing, INFO)
    images = [noise(30 + 25 * i, 90 - 15 * i, seed=i) for i in range(5)]
    together = detector.predict(images, batch_size=batch_size)
    assert isinstance(together, list) and len(together) == 5
    for image, found in zip(images, together, strict=True):
        assert_equal(found, detector.predict(image), tolerance=2e-3)
    assert len(detector.predict(tuple(images[:2]))) == 2


def test_an_empty_list_gives_an_empty_list(guessing: EfficientDet) -> None:
    assert Detector(guessing, INFO).predict([]) == []


def test_many_are_read_a_batch_at_a_time(planted: Planted) -> None:
    taken = []

    def sources() -> Iterator[RgbImage]:
        for i in range(10):
            taken.append(i)
            yield scene(50 + i, 50, (5, 5, 30, 30))

    results = Detector(planted, INFO).predict_many(sources(), batch_size=3)
    assert next(results).image_size == (50, 50)
    assert len(taken) == 8  # this batch, and all but one picture of the next two, which threads are reading
    assert [found.image_size[1] for found in results] == list(range(51, 60))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_none_is_refused(batch_size: int, planted: Planted) -> None:
    with pytest.raises(SettingError, match="batch_size is"):
        Detector(planted, INFO).predict([noise(9, 9)], batch_size=batch_size)


def test_threads_can_share_a_detector(guessing: EfficientDet) -> None:
    detector = Detector(guessing, INFO)
    images = [noise(40 + i, 80 - i, seed=i) for i in range(8)]
    expected = [detector.predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(detector.predict, images), expected, strict=True):
            assert_equal(found, alone, tolerance=1e-4)


# ---- settings
def test_settings_of_the_call_of_the_detector_and_of_the_checkpoint(guessing: EfficientDet) -> None:
    assert Detector(guessing, INFO).postprocess.score_threshold == 0.3
    info = dataclasses.replace(INFO, postprocess={"score_threshold": 0.4, "nms": "soft"})
    detector = Detector(guessing, info, max_detections=7, score_threshold=0.5)
    assert detector.postprocess.nms == "soft"
    image = noise(60, 60)
    found = detector.predict(image)
    assert len(found) == 7 and found.scores.min() >= 0.5
    assert len(detector.predict(image, max_detections=3)) == 3
    assert detector.predict(image, score_threshold=0.99, max_detections=50).scores.min(initial=1) >= 0.99
    assert_equal(detector.predict(image), found)  # a call's settings end with it


@pytest.mark.parametrize("setting", [{"thresold": 0.5}, {"batchsize": 3}, {"iou": 0.4, "nms": "hard"}])
def test_unknown_settings_are_named_with_the_known(setting: dict[str, Any], planted: Planted) -> None:
    detector = Detector(planted, INFO)
    name = next(iter(setting))
    for act in (
        lambda: Detector(planted, INFO, **setting),
        lambda: detector.predict(noise(9, 9), **setting),
        lambda: Detector(planted, dataclasses.replace(INFO, postprocess=setting)),
    ):
        with pytest.raises(SettingError, match=rf"unknown setting '{name}'.* Known: .*score_threshold, "):
            act()


@pytest.mark.parametrize("setting", [{"score_threshold": 1.5}, {"max_detections": 0}, {"sigma": 0}])
def test_settings_out_of_range_are_named(setting: dict[str, Any], planted: Planted) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(setting))} is "):
        Detector(planted, INFO, **setting)
    with pytest.raises(SettingError, match=f"{next(iter(setting))} is "):
        Detector(planted, INFO).predict(noise(9, 9), **setting)


@pytest.mark.parametrize("size", [0, 16, -64, (64,), (64, 16), (64, 64, 3), (64.0, 64.0), "64"])
def test_an_impossible_image_size_is_named(size: Any, planted: Planted) -> None:
    with pytest.raises(SettingError, match="image_size is .* must"):
        Detector(planted, INFO, image_size=size)


def test_an_image_size_may_be_a_list(planted: Planted) -> None:
    detector = Detector(planted, INFO, image_size=[64, 96])  # type: ignore[arg-type]
    assert detector.image_size == (64, 96)
    assert len(detector.predict(scene(100, 80, (10, 20, 50, 60)))) == 1


@pytest.mark.parametrize("device", ["gpu9", "cuda:99", "xpu:7", ""])
def test_a_device_that_is_not_here_is_named(device: str, planted: Planted) -> None:
    with pytest.raises(SettingError, match=f"device '{device}' cannot be used here"):
        Detector(planted, INFO, device=device)


def test_conventions_by_name(guessing: EfficientDet) -> None:
    image = noise(50, 70)
    model = EfficientDet(SPEC, 2)
    model.load_state_dict(guessing.state_dict())
    plain = Detector(model, INFO).predict(image)
    for changed in ({"preprocess": "official"}, {"anchors": "exact"}):
        other = Detector(model, INFO, **changed).predict(image)  # type: ignore[arg-type]
        assert not np.array_equal(plain.boxes_xyxy, other.boxes_xyxy)
    for wrong in ("preprocess", "anchors"):
        with pytest.raises(UnknownNameError, match=f"unknown {wrong} 'best'"):
            Detector(model, INFO, **{wrong: "best"})  # type: ignore[arg-type]


# ---- what may go wrong
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["backbone.conv_stem.weight", "box_head.predict.pointwise.bias", ""])
def test_weights_that_are_not_finite_give_no_crash(value: float, part: str, guessing: EfficientDet) -> None:
    model = EfficientDet(SPEC, 2)
    state = {name: tensor.clone() for name, tensor in guessing.state_dict().items()}
    for name, tensor in state.items():
        if name.startswith(part) and tensor.is_floating_point():
            tensor.fill_(value)
    model.load_state_dict(state)
    found = Detector(model, INFO, score_threshold=0.0).predict(noise(40, 90))
    assert np.isfinite(found.boxes_xyxy).all() and np.isfinite(found.scores).all()
    assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy[:, [0, 2]] <= 90).all()
    if part == "" and value != value:
        assert len(found) == 0


@pytest.mark.parametrize("shape", [(80, 123), (205, 60), (1, 300), (300, 1), (64, 64), (1, 1)])
def test_no_detection_leaves_the_picture(shape: tuple[int, int], guessing: EfficientDet) -> None:
    detector = Detector(guessing, INFO, image_size=320, score_threshold=0.1)
    found = detector.predict(noise(*shape))
    assert len(found) > 0
    assert (found.boxes_xyxy >= 0).all()
    # Dividing by the scale may round up in the last digit.
    assert (found.boxes_xyxy[:, 2:] <= np.array([shape[1], shape[0]])).all()
    assert (found.boxes_xyxy[:, 2:] >= found.boxes_xyxy[:, :2]).all()


def test_a_picture_that_cannot_be_read_is_named(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not much of a picture")
    detector = Detector(planted, INFO)
    for source in (tmp_path / "bad.jpg", [noise(9, 9), str(tmp_path / "bad.jpg")]):
        with pytest.raises(ImageError, match=r"bad\.jpg"):
            detector.predict(source)
    for source in (torch.zeros(2, 3, 9, 9), 5, {"a": 1}, iter([])):
        with pytest.raises(ImageError):
            detector.predict(source)  # type: ignore[call-overload]


# ---- load
def test_a_checkpoint_needs_nothing_but_its_path(guessing: EfficientDet, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, guessing.state_dict(), dataclasses.replace(INFO, postprocess={"max_detections": 5}))
    detector = load(path)
    assert detector.class_names == ("cat", "dog") and detector.image_size == (64, 64)
    assert detector.postprocess.max_detections == 5
    assert not detector.model.training
    image = noise(60, 80)
    assert_equal(detector.predict(image), Detector(guessing, INFO, max_detections=5).predict(image), 1e-3)
    wide = load(str(path), device="cpu", image_size=(64, 128), score_threshold=0.2)
    assert wide.image_size == (64, 128) and wide.postprocess.score_threshold == 0.2


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such weights file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(UnknownNameError, match="'lite00'.*did you mean 'lite0'"):
        load("lite00")


def test_predicting_leaves_no_gradient_and_a_model_that_can_learn(guessing: EfficientDet) -> None:
    detector = Detector(guessing, INFO)
    detector.predict(noise(70, 50))
    # Anchors that were first asked for while predicting are shared with training.
    class_logits, box_deltas = detector.model(torch.randn(1, 3, 64, 64))
    (torch.cat(box_deltas, 1) * detector.model.anchors((64, 64))).sum().backward()
    assert detector.model.box_head.predict.pointwise.bias.grad is not None
    detector.model.zero_grad()


# Videos


def rectangle(number: int, height: int, width: int) -> RgbImage:
    """A white rectangle that moves to the right, 6 pixels a frame."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[16:40, 8 + 6 * number : 32 + 6 * number] = 255
    return pixels


@pytest.fixture(scope="module")
def moving(clips: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av", reason="PyAV is missing (efficientdet[video])")
    times = [number / 10 for number in range(12)]
    path: Path = clips.write_clip(tmp_path_factory.mktemp("clips") / "moving.mp4", times, (64, 128), draw=rectangle)
    return path


def test_stream_gives_the_detections_of_every_frame(planted: Planted, moving: Path) -> None:
    found = list(Detector(planted, INFO).stream(moving, batch_size=5))
    assert [one.frame for one in found] == list(range(12))
    assert [one.time for one in found] == pytest.approx([number / 10 for number in range(12)])
    assert {one.source for one in found} == {str(moving)}
    assert all(one.track_ids is None for one in found)
    lefts = np.concatenate([one.boxes_xyxy[:, 0] for one in found])
    assert lefts == pytest.approx(8 + 6 * np.arange(12), abs=3)


def test_stream_takes_an_open_video_and_settings_of_all_kinds(planted: Planted, moving: Path) -> None:
    detector = Detector(planted, INFO)
    found = list(detector.stream(moving, start=0.25, every=3, threshold=0.999))
    assert [one.frame for one in found] == [0, 3, 6]
    assert [one.time for one in found] == pytest.approx([0.3, 0.6, 0.9])
    assert not any(len(one) for one in found)
    with Video(moving, end=0.35) as video:
        assert len(list(detector.stream(video))) == 4
        with pytest.raises(SettingError, match="every: give it to Video"):
            next(detector.stream(video, every=2))
    with pytest.raises(SettingError, match="did you mean 'track'"):
        next(detector.stream(moving, tracks="sort"))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["bytetrack", "sort"])
def test_stream_gives_an_object_one_id(kind: Any, planted: Planted, moving: Path) -> None:
    pytest.importorskip("trackers", reason="trackers is missing (efficientdet[video])")
    found = list(Detector(planted, INFO).stream(moving, track=kind))
    assert [one.track_ids.tolist() for one in found[3:] if one.track_ids is not None] == [[1]] * 9
    assert found[-1].to_json()["detections"][0]["track_id"] == 1
    assert found[-1].to_json()["frame"] == 11


def test_nothing_goes_on_decoding_when_a_stream_is_left(planted: Planted, moving: Path) -> None:
    stream = Detector(planted, INFO).stream(moving)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]
