"""Score thresholds for an aim: chosen on half of the images, checked on the other, stored in the checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.errors import DataError, SettingError, WeightsError
from efficientdet.evaluation.curves import precision_recall
from efficientdet.evaluation.matching import Matches, match, read_table
from efficientdet.evaluation.operating_points import choose_by_class, choose_threshold, halves, save_thresholds
from efficientdet.evaluation.settings import ThresholdSettings
from efficientdet.exporting.export import make_metadata
from efficientdet.exporting.settings import ExportSettings
from efficientdet.family import MODELS
from efficientdet.images.letterbox import LITE
from efficientdet.inference.detector import load
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.info import CheckpointInfo


def made_up(seed: int = 0, images: int = 40) -> Matches:
    """An object and three detections an image; the right ones score higher, more or less."""
    random = np.random.default_rng(seed)
    box, far = [0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 30.0, 30.0]
    truth = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [{"id": i + 1, "image_id": i, "category_id": 0, "bbox": box} for i in range(images)],
    }
    results = [
        {"image_id": i, "category_id": 0, "bbox": bbox, "score": float(random.beta(a, b))}
        for i in range(images)
        for bbox, a, b in ((box, 4, 2), (far, 2, 4), (far, 2, 4))
    ]
    return match(read_table(truth, results))


@given(st.integers(0, 200), st.integers(0, 5))
def test_halves_share_no_image(images: int, seed: int) -> None:
    first, second = halves(images, seed)
    assert (first ^ second).all() and abs(int(first.sum()) - int(second.sum())) <= 1


@given(st.integers(0, 30), st.sampled_from([0.6, 0.8, 0.9]))
def test_the_aim_is_reached_where_it_was_chosen(seed: int, share: float) -> None:
    matches = made_up(seed)
    curve = precision_recall(matches, images=halves(40)[0])
    found = choose_threshold(matches, ThresholdSettings(min_recall=share))
    assert found.chosen.recall >= share
    higher = curve.scores > found.score_threshold
    assert not (curve.recall[higher] >= share).any()
    if curve.precision.max() >= share:
        found = choose_threshold(matches, ThresholdSettings(min_precision=share))
        assert found.chosen.precision >= share
        assert found.chosen.recall == curve.recall[curve.precision >= share].max()
    assert choose_threshold(matches).chosen.f1 == pytest.approx(curve.f1.max())


def test_a_dear_false_positive_raises_the_threshold() -> None:
    cheap, dear = (
        choose_threshold(made_up(), ThresholdSettings(false_positive_cost=cost)).score_threshold for cost in (0.1, 5.0)
    )
    assert cheap < dear


def test_the_checked_half_was_not_looked_at() -> None:
    matches = made_up()
    found = choose_threshold(matches)
    curve = precision_recall(matches, images=halves(40)[1])
    place = curve.at(found.score_threshold)
    assert found.checked == (curve.precision[place], curve.recall[place], curve.f1[place])


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(DataError, match="at least two"):
        choose_threshold(made_up(images=1))
    with pytest.raises(SettingError, match="min_precision and min_recall are given"):
        ThresholdSettings(min_precision=0.5, min_recall=0.5)
    nothing_right = match(
        read_table(
            {
                "images": [{"id": 0}, {"id": 1}],
                "categories": [{"id": 0, "name": "cat"}],
                "annotations": [{"id": i, "image_id": i, "category_id": 0, "bbox": [0, 0, 9, 9]} for i in (0, 1)],
            },
            [{"image_id": i, "category_id": 0, "bbox": [50, 50, 9, 9], "score": 0.5} for i in (0, 1)],
        )
    )
    with pytest.raises(DataError, match=r"no score threshold reaches recall 0.5 at IoU 0.5; the best is 0.000"):
        choose_threshold(nothing_right, ThresholdSettings(min_recall=0.5))


def two_classes() -> Matches:
    """Cats score high and dogs low, wrong ones just below; no emu is annotated."""
    box, far = [0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 30.0, 30.0]
    truth = {
        "images": [{"id": i} for i in range(40)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(("cat", "dog", "emu"))],
        "annotations": [
            {"id": 2 * i + k + 1, "image_id": i, "category_id": k, "bbox": box} for i in range(40) for k in (0, 1)
        ],
    }
    results = [
        {"image_id": i, "category_id": k, "bbox": bbox, "score": score + i / 1000}
        for i in range(40)
        for k, bbox, score in ((0, box, 0.9), (0, far, 0.8), (1, box, 0.3), (1, far, 0.2), (2, far, 0.95))
    ]
    return match(read_table(truth, results))


def test_each_class_has_its_threshold() -> None:
    matches, settings = two_classes(), ThresholdSettings(by_class=True)
    overall = choose_threshold(matches, settings)
    cat, dog, emu = choose_by_class(matches, settings, overall)
    assert 0.84 < cat.score_threshold <= 0.9 + 0.04 and 0.24 < dog.score_threshold <= 0.3 + 0.04
    for point in (cat, dog):
        assert point.is_own and point.chosen == (1, 1, 1)
        assert point.checked.recall > 0.9 and point.checked.precision == 1
    assert not emu.is_own and emu.score_threshold == overall.score_threshold
    shared = choose_by_class(matches, ThresholdSettings(), overall)
    assert {point.score_threshold for point in shared} == {overall.score_threshold}
    assert overall.checked.f1 < np.mean([cat.checked.f1, dog.checked.f1])


def test_a_class_that_does_not_reach_the_aim_has_the_threshold_of_all() -> None:
    settings = ThresholdSettings(min_precision=0.3, by_class=True)
    overall = choose_threshold(two_classes(), settings)
    assert [point.is_own for point in choose_by_class(two_classes(), settings, overall)] == [True, True, False]


def test_stored_thresholds_are_used(tmp_path: Path) -> None:
    spec = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=64)
    path = tmp_path / "tiny.safetensors"
    info = CheckpointInfo(spec, ("cat", "dog"), (1, 2), LITE, postprocess={"nms": "soft"})
    save_checkpoint(path, EfficientDet(spec, 2).state_dict(), info)
    save_thresholds(path, {"score_threshold": 0.47, "by_class": None})
    detector = load(path)
    assert (detector.postprocess.score_threshold, detector.postprocess.nms) == (0.47, "soft")
    save_thresholds(path, {"score_threshold": 0.47, "by_class": {"dog": 0.2, "another": 0.9}})
    detector = load(path)
    assert detector.postprocess.score_threshold == (0.47, 0.2)
    assert load(path, score_threshold=0.6).postprocess.score_threshold == 0.6
    with pytest.raises(SettingError, match="score_threshold has 3 values, the detector 2 classes"):
        load(path, score_threshold=(0.1, 0.2, 0.3))
    # An exported file says the same to whoever reads it.
    metadata = make_metadata(detector, ExportSettings())
    assert json.loads(metadata.to_json())["postprocess"]["score_threshold"] == [0.47, 0.2]
    assert FileMetadata.from_json(metadata.to_json(), path).postprocess == detector.postprocess
    with pytest.raises(WeightsError, match="checkpoint of your own"):
        save_thresholds("people", {"score_threshold": 0.5, "by_class": None})
    with pytest.raises(DataError, match="too few"):
        save_thresholds(path, None)
