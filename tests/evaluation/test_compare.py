"""Two evaluations of the same images: the difference, whether it may be chance, and where it is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from efficientdet.errors import DataError
from efficientdet.evaluation.coco_ap import Metrics, metrics_of
from efficientdet.evaluation.compare import compare_metrics
from efficientdet.evaluation.matching import match, read_table

pytest.importorskip("faster_coco_eval")

BOX, FAR = [0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 30.0, 30.0]


def metrics(hits: list[bool], objects: bool = True) -> Metrics:
    """One cat an image, found or not."""
    truth: dict[str, Any] = {
        "images": [{"id": f"image {i}"} for i in range(len(hits))],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "[dog]"}],
        "annotations": [
            {"id": i + 1, "image_id": f"image {i}", "category_id": 0, "bbox": BOX} for i in range(len(hits)) if objects
        ],
    }
    found = [
        {"image_id": f"image {i}", "category_id": 0, "bbox": BOX if hit else FAR, "score": 0.9}
        for i, hit in enumerate(hits)
    ]
    table = read_table(truth, found)
    return dataclasses.replace(metrics_of(table), matches=match(table))


def test_a_clear_difference() -> None:
    random = np.random.default_rng(0)
    poor, good = metrics((random.random(60) < 0.4).tolist()), metrics((random.random(60) < 0.9).tolist())
    found = compare_metrics((poor, good), ("a", "b"))
    assert found.difference == pytest.approx(good.ap - poor.ap) and found.difference > 0.2
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.is_certain()
    assert found.per_class == {"cat": pytest.approx(found.difference), "[dog]": None}
    turned = compare_metrics((good, poor), ("b", "a"))
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_the_same_detector_twice() -> None:
    found = compare_metrics((metrics([True, False, True]),) * 2, ("a", "a"))
    assert (found.difference, found.interval, found.better, found.worse) == (0, (0, 0), [], [])
    assert not found.is_certain()


def test_the_images_that_changed() -> None:
    found = compare_metrics((metrics([True, False, True, True]), metrics([True, True, True, False])), ("a", "b"))
    assert found.better == [("image 1", 2)] and found.worse == [("image 3", 2)]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["worse"] == [
        {"image_id": "image 3", "more_mistakes": 2}
    ]
    assert found.rows()[1] == {"class": "cat", "first AP": "0.629", "second AP": "0.752", "difference": "+0.124"}
    difference, better, worse = found.notes()
    assert difference.endswith("may be chance.") and better.endswith("image 1 (2)") and worse.endswith("image 3 (2)")


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="same images"):
        compare_metrics((metrics([True]), metrics([True, True])), ("a", "b"))
    with pytest.raises(DataError, match="nothing to compare"):
        compare_metrics((metrics([True], objects=False),) * 2, ("a", "b"))
