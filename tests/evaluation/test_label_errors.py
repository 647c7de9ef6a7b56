from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from efficientdet.data.quality.findings import Finding
from efficientdet.data.records import ImageRecord, Records
from efficientdet.detections import Detections
from efficientdet.errors import DataError
from efficientdet.evaluation.label_errors import label_findings

Box = tuple[float, float, float, float]
CAT, DOG = 0, 1
A, B, C = (10.0, 10.0, 50.0, 50.0), (60.0, 10.0, 95.0, 50.0), (10.0, 60.0, 50.0, 95.0)


def record(boxes: list[tuple[Box, int]], ignored: tuple[Box, ...] = ()) -> ImageRecord:
    every = [*boxes, *((box, CAT) for box in ignored)]
    count = len(every)
    return ImageRecord(
        5, Path("a.jpg"), 100, 100, np.array([box for box, _ in every], np.float32).reshape(-1, 4),
        np.array([label for _, label in every], np.int64), np.arange(count) >= len(boxes),
        np.zeros(count, np.float32), [f"id{n}" for n in range(count)],
    )  # fmt: skip


def found(*rows: tuple[Box, int, float], names: tuple[str, ...] = ("cat", "dog")) -> Detections:
    ordered = sorted(rows, key=lambda row: -row[2])
    return Detections(
        np.array([row[0] for row in ordered], np.float32).reshape(-1, 4), np.array([row[2] for row in ordered]),
        np.array([row[1] for row in ordered], np.int64), names, (100, 100),
    )  # fmt: skip


def findings(*pairs: tuple[ImageRecord, Detections]) -> list[Finding]:
    records = Records([one for one, _ in pairs], ("cat", "dog"), (1, 2), Path("x"))
    return label_findings(records, "train", [detections for _, detections in pairs])


def test_where_the_model_agrees_there_is_nothing() -> None:
    assert findings((record([(A, CAT), (B, DOG)]), found((A, CAT, 0.9), (B, DOG, 0.8), (C, CAT, 0.3)))) == []


def test_an_object_without_a_box() -> None:
    (one,) = findings((record([(A, CAT)]), found((A, CAT, 0.9), (C, DOG, 0.95), (C, CAT, 0.7))))
    assert (one.code, one.image_id, one.annotation_ids, one.boxes_xyxy) == ("label-missing", 5, (), (C,))
    assert "'dog' with a score of 0.95" in one.what
    assert one.weight == pytest.approx(-math.log(0.05), abs=1e-3)


def test_an_object_in_an_ignored_region_needs_no_box() -> None:
    assert findings((record([(A, CAT)], ignored=((5, 55, 60, 99),)), found((A, CAT, 0.9), (C, DOG, 0.95)))) == []


def test_a_box_of_another_class() -> None:
    (one,) = findings((record([(A, CAT), (B, CAT)]), found((A, CAT, 0.9), (B, DOG, 0.8), (B, CAT, 0.06))))
    assert (one.code, one.annotation_ids, one.boxes_xyxy) == ("label-class", ("id1",), (B,))
    assert "annotated 'cat', for the model 'dog' with a score of 0.80" in one.what
    assert one.weight == pytest.approx(-math.log(0.06), abs=1e-3)


def test_two_classes_on_one_object_are_no_wrong_class() -> None:
    assert findings((record([(A, CAT), (A, DOG), (B, CAT)]), found((A, DOG, 0.8), (B, CAT, 0.9)))) == [
        one for one in findings((record([(A, CAT), (A, DOG), (B, CAT)]), found((A, DOG, 0.8), (B, CAT, 0.9))))
        if one.code == "label-doubtful"
    ]  # fmt: skip


def test_a_badly_drawn_box() -> None:
    better = (10.0, 10.0, 25.0, 50.0)
    (one,) = findings((record([(A, CAT), (B, CAT)]), found((better, CAT, 0.9), (B, CAT, 0.9))))
    assert (one.code, one.annotation_ids, one.boxes_xyxy) == ("label-box", ("id0",), (A, better))
    assert one.weight == pytest.approx(-math.log(15 / 40), abs=1e-3)


def test_a_box_on_nothing_is_told_where_the_model_finds_others_of_its_size() -> None:
    able = [(record([(A, CAT), (B, CAT)]), found((A, CAT, 0.9), (B, CAT, 0.8)))] * 3
    lone = (record([(A, CAT), (C, DOG)]), found((A, CAT, 0.9)))
    (one,) = findings(*able, lone)
    assert (one.code, one.annotation_ids, one.boxes_xyxy) == ("label-doubtful", ("id1",), (C,))
    unable = [(record([(A, CAT), (B, CAT)]), found())] * 3
    assert findings(*unable, lone) == []


def test_the_worst_comes_first_and_losses_are_bounded() -> None:
    every = findings(
        (record([]), found((A, CAT, 1.0))), (record([]), found((A, CAT, 0.7))),
    )  # fmt: skip
    assert [one.weight for one in every] == pytest.approx([-math.log(1e-3), -math.log(0.3)], abs=1e-3)


def test_classes_go_by_name_and_an_unknown_one_is_refused() -> None:
    turned = found((A, 1, 0.9), (C, 0, 0.9), names=("owl", "cat", "dog")[:3])
    assert findings((record([(A, CAT)]), turned)) == []
    with pytest.raises(DataError, match="does not know its classes.*dog"):
        findings((record([(A, CAT)]), found((A, 0, 0.9), names=("cat", "owl"))))
