"""Several views of an image, or several detectors, answer as one, in the pixels of the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.detections import Detections
from efficientdet.errors import ImageError, SettingError
from efficientdet.family import MODELS
from efficientdet.images.letterbox import LITE
from efficientdet.inference.detector import Detector
from efficientdet.inference.ensemble import Ensemble, ensemble
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.info import CheckpointInfo

SPEC = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=128)
NAMES = ("cat", "dog")


class SeesWhite(Detector):
    """Finds the white rectangle of an image, `shift` pixels too far right, as class 1."""

    def __init__(self, score: float = 0.8, shift: float = 0.0, names: tuple[str, ...] = NAMES, **options: Any) -> None:
        super().__init__(EfficientDet(SPEC, len(names)), CheckpointInfo(SPEC, names, (7, 3), LITE), **options)
        self.score, self.shift = score, shift
        self.sizes: list[tuple[int, ...]] = []

    def _detect(self, images: Sequence[Any], settings: PostprocessSettings, alone: bool = False) -> list[Detections]:
        assert settings.score_threshold == 0.001
        found = []
        for image in images:
            self.sizes.append(image.pixels.shape[1:])
            rows, columns = np.nonzero(image.image[:, :, 0] == 255)
            boxes = [[columns.min() + self.shift, rows.min(), columns.max() + 1 + self.shift, rows.max() + 1]]
            found.append(Detections(boxes, [self.score], [1], self.class_names, image.image_size, (7, 3)))  # type: ignore[arg-type]
        return found


@pytest.fixture
def picture() -> Any:
    """A white rectangle, left of the middle."""
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[20:60, 10:40] = 255
    return pixels


def test_a_mirrored_view_speaks_of_the_image_itself(picture: Any) -> None:
    found = ensemble(SeesWhite(), flip=True).predict(picture)
    assert found.boxes_xyxy.tolist() == [[10, 20, 40, 60]]
    assert found.scores[0] == pytest.approx(0.8)
    assert found.image is not None and (found.image == picture).all()
    assert found.category_ids == (7, 3)


def test_what_is_shifted_in_both_views_is_right_in_the_mean(picture: Any) -> None:
    assert ensemble(SeesWhite(shift=2), flip=True).predict(picture).boxes_xyxy[0, 0] == pytest.approx(10, abs=1e-4)


def test_every_scale_is_an_input_size_that_fits_the_strides(picture: Any) -> None:
    member = SeesWhite()
    ensemble(member, flip=True, scales=(1, 1.9)).predict(picture)
    assert sorted(member.sizes) == [(128, 128)] * 2 + [(256, 256)] * 2


def test_several_detectors_vote(picture: Any) -> None:
    both = ensemble(SeesWhite(0.9), SeesWhite(0.3, shift=4), weights=(1, 1), score_threshold=0.5)
    found = both.predict(picture)
    assert found.scores[0] == pytest.approx(0.6) and found.boxes_xyxy[0, 0] == pytest.approx(11)
    assert not len(both.predict(picture, score_threshold=0.7))
    assert not len(both.predict(picture, score_threshold=(0.5, 0.7)))
    assert len(both.predict(picture, score_threshold=(0.7, 0.5))) == 1


def test_many_images_past_one_that_cannot_be_read(picture: Any, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    sources = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"]
    first, second, third = ensemble(SeesWhite(), flip=True).try_many(sources)
    assert isinstance(second, ImageError)
    assert isinstance(first, Detections) and first.source == str(tmp_path / "a.png")
    assert isinstance(third, Detections) and len(third) == 1


def test_one_view_of_one_detector_is_that_detector() -> None:
    member = SeesWhite()
    assert ensemble(member) is member and ensemble(member, scales=(1,)) is member


def test_real_networks(tmp_path: Path) -> None:
    """Of two copies of a checkpoint the fused boxes are its own; the engine runs several sizes and images."""
    save_checkpoint(
        tmp_path / "a.safetensors", EfficientDet(SPEC, 2).state_dict(), CheckpointInfo(SPEC, NAMES, (7, 3), LITE)
    )
    images = list(np.random.default_rng(0).integers(0, 255, (3, 90, 120, 3), np.uint8))
    twice = ensemble(tmp_path / "a.safetensors", tmp_path / "a.safetensors", score_threshold=0.001, backend="eager")
    assert isinstance(twice, Ensemble)
    alone = twice.members[0].predict(images[0], iou_threshold=0.1)  # boxes so far apart that none join
    alone = alone[(alone.boxes_xyxy[:, 2:] > alone.boxes_xyxy[:, :2]).all(1)]
    fused = twice.predict(images[0], iou_threshold=0.1)
    assert np.allclose(fused.boxes_xyxy, alone.boxes_xyxy, atol=1e-3) and np.allclose(fused.scores, alone.scores)
    flipped = ensemble(twice.members[0], flip=True, scales=(1, 2))
    found = flipped.predict(images, batch_size=2)
    assert [len(one) > 0 for one in found] == [True] * 3
    one = flipped.predict(images[2])
    assert one.scores == pytest.approx(found[2].scores, abs=1e-5)


def test_what_cannot_be_an_ensemble() -> None:
    with pytest.raises(SettingError, match=r"know other classes: \['cat', 'dog'\] and \['cat', 'emu'\]"):
        ensemble(SeesWhite(), SeesWhite(names=("cat", "emu")))
    with pytest.raises(SettingError, match="at least one"):
        ensemble()
    with pytest.raises(SettingError, match="a positive number for each of 1"):
        ensemble(SeesWhite(), weights=(0,), flip=True)
    with pytest.raises(SettingError, match="reduced_decoding"):
        ensemble(SeesWhite(reduced_decoding=True), flip=True)
    with pytest.raises(SettingError, match="an exported file is run at its own input size"):
        exported = Detector(None, CheckpointInfo(SPEC, NAMES, (7, 3), LITE), engine=SeesWhite().engine)
        ensemble(exported, scales=(1, 2))
    with pytest.raises(SettingError, match="scales is empty"):
        ensemble(SeesWhite(), scales=())
    with pytest.raises(SettingError, match="several networks"):
        _ = ensemble(SeesWhite(), flip=True).model
