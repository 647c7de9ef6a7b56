"""evaluate: a detector that tells the truth has AP 1, whatever the dataset calls its classes and images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.data.read_split import read_split
from efficientdet.detections import Detections
from efficientdet.errors import DataError, ImageError, SettingError
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.evaluation.report import summarize
from efficientdet.family import MODELS
from efficientdet.images.letterbox import LITE
from efficientdet.inference.detector import Detector
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.info import CheckpointInfo

pytest.importorskip("faster_coco_eval")

SPEC = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=64)
CAT, DOG, EMU = 3, 8, 5
NAMES = {CAT: "cat", DOG: "dog", EMU: "emu"}

# (box xywh, category, iscrowd) of each image; image i is 60 + i wide.
Box = tuple[list[float], int, int]
TRUTH: list[list[Box]] = [
    [([5, 5, 20, 20], CAT, 0), ([30, 10, 25, 30], DOG, 0)],
    [([0, 0, 60, 40], DOG, 0)],
    [],
    [([10, 10, 30, 30], CAT, 0), ([2, 2, 6, 6], CAT, 0)],
]


def write_data(
    folder: Path, truth: list[list[Box]], ids: Sequence[int | str] = (), categories: Sequence[int] = (CAT, DOG)
) -> Path:
    images, annotations = [], []
    (folder / "images").mkdir()
    for i, boxes in enumerate(truth):
        image_id = ids[i] if ids else i
        Image.new("RGB", (60 + i, 50), (90, 90, 90)).save(folder / "images" / f"{i}.png")
        images.append({"id": image_id, "file_name": f"{i}.png", "width": 60 + i, "height": 50})
        for bbox, category, crowd in boxes:
            number = len(annotations) + 1
            fields = {"id": number, "image_id": image_id, "category_id": category, "iscrowd": crowd}
            annotations.append({**fields, "bbox": bbox, "area": bbox[2] * bbox[3]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category, "name": NAMES[category]} for category in categories],
    }
    (folder / "val.json").write_text(json.dumps(content))
    return folder


class Stub(Detector):
    """Knows the answer by the width of the image; answers are (box xywh, class name, score)."""

    def __init__(
        self, model: EfficientDet, names: tuple[str, ...], answers: list[list[Any]], **postprocess: Any
    ) -> None:
        super().__init__(model, CheckpointInfo(SPEC, names, tuple(range(len(names))), LITE, postprocess))
        self.answers = answers
        self.asked: list[tuple[int, PostprocessSettings]] = []

    def _detect(self, images: Sequence[Any], settings: PostprocessSettings, alone: bool = False) -> list[Detections]:
        self.asked.append((len(images), settings))
        found = []
        for image in images:
            answer = self.answers[image.image_size[1] - 60]
            boxes = [[x, y, x + width, y + height] for (x, y, width, height), _, _ in answer]
            labels = [self.class_names.index(name) for _, name, _ in answer]
            scores = [score for *_, score in answer]
            found.append(
                Detections(np.array(boxes), np.array(scores), np.array(labels), self.class_names, image.image_size)
            )
        return found


@pytest.fixture(scope="module")
def model() -> EfficientDet:
    return EfficientDet(SPEC, 2)


def the_truth(truth: list[list[Box]], score: float = 0.9) -> list[list[Any]]:
    return [[(bbox, NAMES[category], score) for bbox, category, _ in boxes] for boxes in truth]


# ---- right and wrong answers
def test_the_truth_has_ap_1(model: EfficientDet, tmp_path: Path) -> None:
    metrics = evaluate(Stub(model, ("cat", "dog"), the_truth(TRUTH)), write_data(tmp_path, TRUTH))
    assert metrics.ap == pytest.approx(1) and metrics.ap50 == pytest.approx(1) and metrics.ar100 == pytest.approx(1)
    assert metrics.per_class == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    assert metrics.images == 4 and metrics.boxes == 5


def test_silence_has_ap_0(model: EfficientDet, tmp_path: Path) -> None:
    metrics = evaluate(Stub(model, ("cat", "dog"), [[]] * 4), write_data(tmp_path, TRUTH))
    assert metrics.ap == 0 and metrics.ar100 == 0


def test_boxes_on_a_negative_count_as_wrong(model: EfficientDet, tmp_path: Path) -> None:
    answers = the_truth(TRUTH)
    answers[2] = [([0, 0, 20, 20], "dog", 0.99)]
    metrics = evaluate(Stub(model, ("cat", "dog"), answers), write_data(tmp_path, TRUTH))
    assert metrics.per_class["cat"] == pytest.approx(1)
    assert metrics.per_class["dog"] == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_image_is_asked_once_and_progress_is_told(batch_size: int, model: EfficientDet, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    stub = Stub(model, ("cat", "dog"), the_truth(TRUTH))
    metrics = evaluate(
        stub, write_data(tmp_path, TRUTH), batch_size=batch_size, progress=lambda *done: told.append(done)
    )
    assert metrics.ap == pytest.approx(1)
    assert sum(count for count, _ in stub.asked) == 4
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ---- classes and ids
def test_classes_are_matched_by_name_in_whatever_order(model: EfficientDet, tmp_path: Path) -> None:
    folder = write_data(tmp_path, TRUTH)
    for names in (("cat", "dog"), ("dog", "cat"), ("emu", "dog", "yak", "cat")):
        metrics = evaluate(Stub(model, names, the_truth(TRUTH)), folder)
        assert metrics.per_class == {"cat": pytest.approx(1), "dog": pytest.approx(1)}, names


def test_detections_of_classes_that_the_data_set_lacks_are_left_out(model: EfficientDet, tmp_path: Path) -> None:
    answers = [
        [*([([5, 5, 20, 20], "emu", 0.99)] * 3), *boxes, ([1, 1, 9, 9], "emu", 0.5)] for boxes in the_truth(TRUTH)
    ]
    metrics = evaluate(Stub(model, ("emu", "cat", "dog"), answers), write_data(tmp_path, TRUTH))
    assert metrics.ap == pytest.approx(1)
    assert list(metrics.per_class) == ["cat", "dog"]


def test_a_class_that_the_detector_does_not_know_is_an_error(model: EfficientDet, tmp_path: Path) -> None:
    folder = write_data(tmp_path, TRUTH, categories=(CAT, DOG, EMU))
    with pytest.raises(DataError) as caught:
        evaluate(Stub(model, ("dog", "cat"), the_truth(TRUTH)), folder)
    assert str(folder / "val.json") in str(caught.value)
    assert "['emu']" in str(caught.value) and "['dog', 'cat']" in str(caught.value)


@pytest.mark.parametrize("ids", [["b", "a", "z", "0"], [40, 30, 20, 10], ["1", 1, "x", 2]])
def test_ids_of_any_kind(ids: list[int | str], model: EfficientDet, tmp_path: Path) -> None:
    metrics = evaluate(Stub(model, ("cat", "dog"), the_truth(TRUTH)), write_data(tmp_path, TRUTH, ids))
    assert metrics.ap == pytest.approx(1)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong(model: EfficientDet, tmp_path: Path) -> None:
    truth = [[*boxes, ([35.0, 0.0, 25.0, 50.0], CAT, 1)] for boxes in TRUTH]
    found = [[*boxes, ([40, 10, 10, 10], "cat", 0.99)] for boxes in the_truth(TRUTH)]
    (tmp_path / "crowds").mkdir()
    metrics = evaluate(Stub(model, ("cat", "dog"), found), write_data(tmp_path / "crowds", truth))
    assert metrics.ap == pytest.approx(1) and metrics.boxes == 5
    (tmp_path / "none").mkdir()
    without = evaluate(Stub(model, ("cat", "dog"), found), write_data(tmp_path / "none", TRUTH))
    assert without.per_class["cat"] is not None and without.per_class["cat"] < 0.6


# ---- settings
def test_the_threshold_is_low_unless_given_and_never_that_for_showing(model: EfficientDet, tmp_path: Path) -> None:
    folder = write_data(tmp_path, TRUTH)
    stub = Stub(model, ("cat", "dog"), the_truth(TRUTH), score_threshold=0.4, iou_threshold=0.6)
    assert stub.postprocess.score_threshold == 0.4
    evaluate(stub, folder)
    assert stub.asked[-1][1] == PostprocessSettings(score_threshold=0.001, iou_threshold=0.6)
    evaluate(stub, folder, score_threshold=0.2, nms="soft")
    assert stub.asked[-1][1] == PostprocessSettings(score_threshold=0.2, iou_threshold=0.6, nms="soft")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"treshold": 1}, "unknown setting"),
        ({"sigma": -1}, "sigma is -1"),
    ],
)
def test_settings_that_are_none_are_named(
    setting: dict[str, Any], says: str, model: EfficientDet, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=says):
        evaluate(Stub(model, ("cat", "dog"), the_truth(TRUTH)), write_data(tmp_path, TRUTH), **setting)


# ---- data
def test_records_a_file_or_a_folder(model: EfficientDet, tmp_path: Path) -> None:
    folder = write_data(tmp_path, TRUTH)
    stub = Stub(model, ("cat", "dog"), the_truth(TRUTH))
    for data in (read_split(folder, "val"), folder / "val.json", str(folder)):
        assert evaluate(stub, data).ap == pytest.approx(1)
    with pytest.raises(DataError, match="no annotations of the split 'test'"):
        evaluate(stub, folder, split="test")


def test_a_split_without_images_says_so(model: EfficientDet, tmp_path: Path) -> None:
    stub = Stub(model, ("cat", "dog"), [])
    records = dataclasses.replace(read_split(write_data(tmp_path, TRUTH), "val"), images=[])
    with pytest.raises(DataError, match="the split has no images; there is nothing to evaluate"):
        evaluate(stub, records)
    assert not stub.asked


def test_a_split_without_objects_has_no_ap(model: EfficientDet, tmp_path: Path) -> None:
    stub = Stub(model, ("cat", "dog"), [[([5, 5, 20, 20], "cat", 0.9)], []])
    metrics = evaluate(stub, write_data(tmp_path, [[], []]))
    report = summarize(metrics)
    assert (metrics.ap, metrics.boxes) == (-1, 0)
    assert report["numbers"]["ap"]["value"] is None and report["threshold"] is None
    assert report["mistakes"]["background"]["count"] == 1


def test_the_speed_is_measured(model: EfficientDet, tmp_path: Path) -> None:
    metrics = evaluate(Stub(model, ("cat", "dog"), the_truth(TRUTH)), write_data(tmp_path, TRUTH))
    assert metrics.images_per_second is not None and metrics.images_per_second > 0


def test_missing_and_unreadable_images(model: EfficientDet, tmp_path: Path) -> None:
    folder = write_data(tmp_path, TRUTH)
    stub = Stub(model, ("cat", "dog"), the_truth(TRUTH))
    content = (folder / "images" / "1.png").read_bytes()
    (folder / "images" / "1.png").write_bytes(content[: len(content) // 2])  # the header is there
    with pytest.raises(ImageError, match=r"1\.png"):
        evaluate(stub, folder)
    (folder / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        evaluate(stub, folder)
    assert evaluate(stub, folder, skip_missing=True).images == 3


def test_a_checkpoint_by_its_path(model: EfficientDet, tmp_path: Path) -> None:
    info = CheckpointInfo(SPEC, ("cat", "dog"), (0, 1), LITE)
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), info)
    metrics = evaluate(str(tmp_path / "model.safetensors"), write_data(tmp_path, TRUTH))
    assert 0 <= metrics.ap < 0.5 and np.isfinite(metrics.ap)
