"""Score thresholds for an aim: chosen on half of the images, checked on the other, stored in the checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.errors import DataError, SettingError, WeightsError
from efficientdet.evaluation.curves import precision_recall
from efficientdet.evaluation.matching import Matches, match, read_table
from efficientdet.evaluation.operating_points import choose_threshold, halves, save_threshold
from efficientdet.evaluation.settings import ThresholdSettings
from efficientdet.family import MODELS
from efficientdet.images.letterbox import LITE
from efficientdet.inference.detector import load
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


def test_a_stored_threshold_is_used(tmp_path: Path) -> None:
    spec = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=64)
    path = tmp_path / "tiny.safetensors"
    info = CheckpointInfo(spec, ("cat",), (1,), LITE, postprocess={"nms": "soft"})
    save_checkpoint(path, EfficientDet(spec, 1).state_dict(), info)
    save_threshold(path, 0.47)
    detector = load(path)
    assert (detector.postprocess.score_threshold, detector.postprocess.nms) == (0.47, "soft")
    with pytest.raises(WeightsError, match="checkpoint of your own"):
        save_threshold("people", 0.5)
    with pytest.raises(DataError, match="too few"):
        save_threshold(path, None)
