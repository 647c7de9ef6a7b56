"""One table of matches: COCO's AP, curves, confusion and mistakes can each be computed again from it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.errors import DataError
from efficientdet.evaluation.curves import (
    average_precision,
    bootstrap_interval,
    calibration,
    class_ap,
    mean_iou_of_hits,
    precision_recall,
)
from efficientdet.evaluation.matching import Matches, match, read_table
from efficientdet.evaluation.mistakes import KINDS, confusion_matrix, cost_of_mistakes, find_mistakes


def annotation(number: int, image_id: Any, category_id: Any, bbox: list[float], **more: Any) -> dict[str, Any]:
    fields = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return fields | {"area": bbox[2] * bbox[3], "iscrowd": 0} | more


def result(image_id: Any, category_id: Any, bbox: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def truth_of(annotations: list[dict[str, Any]], images: int = 1, classes: int = 2) -> dict[str, Any]:
    return {
        "images": [{"id": i, "width": 240, "height": 240} for i in range(images)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(classes)],
        "annotations": annotations,
    }


def matches_of(annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int = 1) -> Matches:
    return match(read_table(truth_of(annotations, images), results))


# Corners on a coarse grid, so that overlaps, exact hits and equal boxes are common.
corner = st.integers(0, 12).map(lambda step: step * 10.0)
side = st.integers(1, 12).map(lambda step: step * 10.0)
boxes = st.tuples(corner, corner, side, side).map(list)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Up to three images and classes, crowds among the boxes, equal scores among the results."""
    places = st.tuples(st.integers(0, 2), st.integers(0, 2), boxes)
    rows = draw(st.lists(st.tuples(places, st.sampled_from([0, 0, 0, 1])), max_size=10))
    annotations = [annotation(n, *place, iscrowd=crowd) for n, (place, crowd) in enumerate(rows, start=1)]
    found = draw(st.lists(st.tuples(places, st.integers(0, 10).map(lambda tenths: tenths / 10)), max_size=16))
    return truth_of(annotations, 3, 3), [result(*place, score) for place, score in found]


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """Precision (T, R, K) of the reference, for boxes of all sizes and 100 detections; -1 is undefined."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy({"info": {}, **truth})
        coco.createIndex()
        found = coco.loadRes(copy.deepcopy(results)) if results else COCO()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, -1]


def assert_equals_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    precision = by_pycocotools(truth, results)
    ap = class_ap(match(read_table(truth, results)))
    for label in range(len(ap)):
        if (precision[:, :, label] == -1).all():
            assert np.isnan(ap[label])
        else:
            assert ap[label] == pytest.approx(precision[:, :, label].mean(), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_ap_of_the_matches_is_that_of_pycocotools(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    assert_equals_pycocotools(*case)


@pytest.mark.parametrize("name", ["cocoapi", "low_ap"])
def test_ap_of_the_fixtures_is_that_of_pycocotools(name: str, shared_data: Path) -> None:
    folder = shared_data / "eval_fixtures"
    truth = json.loads((folder / f"{name}_gt.json").read_text())
    results = json.loads((folder / f"{name}_results.json").read_text())
    assert_equals_pycocotools(truth, results)
    expected = json.loads((folder / "expected.json").read_text())[name]
    matches = match(read_table(truth, results))
    assert np.nanmean(class_ap(matches)) == pytest.approx(expected[0], abs=1e-3)
    assert np.nanmean(class_ap(matches, 0.5)) == pytest.approx(expected[1], abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 10).map(lambda tenths: tenths / 10))
def test_confusion_curve_and_mistakes_agree(
    case: tuple[dict[str, Any], list[dict[str, Any]]], threshold: float
) -> None:
    """The diagonal is the curve's number of hits, rows add up to objects, columns to detections."""
    matches = match(read_table(*case))
    matrix = confusion_matrix(matches, threshold)
    level = matches.threshold_index(0.5)
    kept = (matches.detections.scores >= threshold) & ~matches.is_ignored[level]
    for label in range(3):
        curve = precision_recall(matches, label)
        point = curve.at(threshold)
        assert matrix[label, label] == (curve.hits[point] if point >= 0 else 0)
        assert matrix[label].sum() == matches.objects_by_class()[label]
        assert matrix[:, label].sum() == (matches.detections.labels[kept] == label).sum()
    mistakes = find_mistakes(matches)
    assert (
        sum(mistakes.count_by_kind().values()) - mistakes.is_missed.sum()
        == (~matches.hits() & ~matches.is_ignored[level]).sum()
    )


@settings(max_examples=100, deadline=None)
@given(cases())
def test_each_object_is_found_once(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    matches = match(read_table(*case))
    assert (np.diff(matches.detections.scores) <= 0).all()
    for level, found in enumerate(matches.objects_found):
        rows = np.flatnonzero((found >= 0) & ~matches.is_ignored[level])
        assert len(set(found[rows].tolist())) == len(rows)
        assert (matches.objects.labels[found[rows]] == matches.detections.labels[rows]).all()
        assert (matches.objects.images[found[rows]] == matches.detections.images[rows]).all()


def test_more_than_a_hundred_detections_of_an_image_and_class() -> None:
    results = [result(0, 0, [float(i), 0.0, 10.0, 10.0], 0.5 + i / 1000) for i in range(150)]
    matches = matches_of([annotation(1, 0, 0, [0.0, 0.0, 10.0, 10.0])], results)
    assert len(matches.detections) == 100
    assert matches.detections.scores.min() == pytest.approx(0.55)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["score", "bbox"])
def test_a_number_that_is_not_finite_names_its_row(field: str, bad: float) -> None:
    rows = [result(0, 0, [0.0, 0.0, 9.0, 9.0], 0.5) for _ in range(3)]
    rows[1][field] = bad if field == "score" else [0.0, bad, 9.0, 9.0]
    with pytest.raises(DataError, match=f"result 2 of image_id 0: {field} is not finite; 1 results"):
        matches_of([], rows)


@pytest.mark.parametrize(("field", "listed"), [("image_id", "images"), ("category_id", "categories")])
def test_an_unknown_image_or_class_names_its_row(field: str, listed: str) -> None:
    rows = [result(0, 0, [0.0, 0.0, 9.0, 9.0], 0.5), result(0, 0, [0.0, 0.0, 9.0, 9.0], 0.5) | {field: 77}]
    with pytest.raises(DataError, match=f"result 2: {field} 77 is not among the ground truth's {listed}"):
        matches_of([], rows)


def test_nothing_at_all() -> None:
    matches = matches_of([], [])
    assert np.isnan(class_ap(matches)).all()
    assert confusion_matrix(matches, 0.5).sum() == 0
    assert set(find_mistakes(matches).count_by_kind().values()) == {0}
    assert cost_of_mistakes(matches, find_mistakes(matches)) == dict.fromkeys(KINDS, 0.0)
    assert np.isnan(mean_iou_of_hits(matches)) and np.isnan(bootstrap_interval(matches)).all()
    assert calibration(matches).error == 0


def test_average_precision_by_hand() -> None:
    assert average_precision(np.array([1.0, 0.5, 2 / 3]), np.array([0.5, 0.5, 1.0])) == pytest.approx(
        (51 * 1 + 50 * 2 / 3) / 101
    )
    assert average_precision(np.zeros(0), np.zeros(0)) == 0


OBJECT = [0.0, 0.0, 100.0, 100.0]
FAR = [150.0, 150.0, 50.0, 50.0]


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("localization", [result(0, 0, [0.0, 0.0, 100.0, 30.0], 0.9)]),
        ("classification", [result(0, 1, OBJECT, 0.9)]),
        ("both", [result(0, 1, [0.0, 0.0, 100.0, 30.0], 0.9)]),
        ("background", [result(0, 0, FAR, 0.9)]),
        ("duplicate", [result(0, 0, OBJECT, 0.9), result(0, 0, [0.0, 0.0, 100.0, 99.0], 0.8)]),
    ],
)
def test_kinds_of_mistakes(kind: str, found: list[dict[str, Any]]) -> None:
    matches = matches_of([annotation(1, 0, 0, OBJECT)], found)
    count = find_mistakes(matches).count_by_kind()
    missed = int(kind in ("both", "background"))
    assert count == dict.fromkeys(KINDS, 0) | {kind: 1, "missed": missed}


def test_a_confused_object_stands_in_its_row() -> None:
    annotations = [annotation(1, 0, 0, OBJECT), annotation(2, 0, 1, FAR)]
    matches = matches_of(annotations, [result(0, 1, OBJECT, 0.9), result(0, 1, OBJECT, 0.8), result(0, 1, FAR, 0.3)])
    assert confusion_matrix(matches, 0.5).tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert confusion_matrix(matches, 0.1).tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_mean_iou_and_calibration() -> None:
    annotations = [annotation(1, 0, 0, OBJECT), annotation(2, 1, 0, OBJECT)]
    found = [result(0, 0, OBJECT, 0.95), result(1, 0, [0.0, 0.0, 100.0, 60.0], 0.55), result(1, 0, FAR, 0.55)]
    matches = matches_of(annotations, found, images=2)
    assert mean_iou_of_hits(matches) == pytest.approx(0.8)
    measured = calibration(matches, bins=10)
    assert measured.counts[[5, 9]].tolist() == [2, 1] and measured.counts.sum() == 3
    assert measured.precisions[[5, 9]].tolist() == [0.5, 1.0]
    assert measured.error == pytest.approx((2 * 0.05 + 0.05) / 3)


def test_the_interval_holds_the_ap_and_is_repeatable() -> None:
    random = np.random.default_rng(0)
    annotations = [annotation(i + 1, i, 0, OBJECT) for i in range(40)]
    found = [result(i, 0, OBJECT if random.random() < 0.7 else FAR, float(random.random())) for i in range(40)]
    matches = match(read_table(truth_of(annotations, 40), found))
    low, high = bootstrap_interval(matches, 0.5)
    assert low < np.nanmean(class_ap(matches, 0.5)) < high
    assert high - low < 0.5
    assert (low, high) == bootstrap_interval(matches, 0.5)
    assert bootstrap_interval(matches, 0.5, seed=1) != (low, high)


def test_an_image_that_counts_twice_is_two_images() -> None:
    truth, results = truth_of([annotation(1, 0, 0, OBJECT), annotation(2, 1, 0, OBJECT)], 2), []
    results = [result(0, 0, FAR, 0.9), result(0, 0, OBJECT, 0.8), result(1, 0, OBJECT, 0.7)]
    twice = truth_of([*truth["annotations"], annotation(3, 2, 0, OBJECT)], 3)
    copied = [*results, *(r | {"image_id": 2} for r in results if r["image_id"] == 1)]
    weighted = class_ap(match(read_table(truth, results)), image_weights=np.array([1, 2]))
    assert weighted[0] == pytest.approx(class_ap(match(read_table(twice, copied)))[0])


# Of tidecv 1.0.1 on the fixtures, boxes, thresholds 0.5 and 0.1: counts, and AP50 gains in points.
TIDE = {
    "cocoapi": ((83, 1, 0, 1, 0, 97), (22.2460, 0.2279, 0.0, 0.0190, 0.0, 8.5236)),
    "low_ap": ((3, 7, 1, 0, 4, 170), (8.9687, 0.7618, 0.0, 0.0, 0.0348, 40.0063)),
}


@pytest.mark.parametrize("name", TIDE)
def test_mistakes_are_those_of_tidecv(name: str, shared_data: Path) -> None:
    folder = shared_data / "eval_fixtures"
    truth = json.loads((folder / f"{name}_gt.json").read_text())
    matches = match(read_table(truth, json.loads((folder / f"{name}_results.json").read_text())))
    mistakes = find_mistakes(matches)
    counts, gains = TIDE[name]
    kinds = ("classification", "localization", "both", "duplicate", "background", "missed")
    assert mistakes.count_by_kind() == dict(zip(kinds, counts, strict=True))
    costs = cost_of_mistakes(matches, mistakes)
    # The gains of the first fixture, which has crowds, differ by up to 0.014 points.
    assert [100 * costs[kind] for kind in kinds] == pytest.approx(gains, abs=0.02)
