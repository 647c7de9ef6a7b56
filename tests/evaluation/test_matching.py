"""One table of matches: COCO's AP, curves, confusion and mistakes can each be computed again from it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.errors import DataError
from efficientdet.evaluation.curves import (
    RECALLS,
    average_precision,
    calibration,
    class_ap,
    iou_of_hits,
    precision_recall,
    resampled_ap,
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


class Row(NamedTuple):
    """A line of the table of matches: a detection, and the object that it found."""

    score: float
    image: int
    label: int
    box: list[float]
    found: int | None


def table_of(matches: Matches, iou: float) -> tuple[list[Row], list[Row]]:
    """The table of matches as plain rows: detections that count, best first, and objects that count."""
    level = matches.threshold_index(iou)
    columns = [matches.detections.scores, matches.detections.images, matches.detections.labels]
    rows = zip(
        *(c.tolist() for c in columns),
        matches.detections.boxes_xywh.tolist(),
        matches.objects_found[level].tolist(),
        strict=True,
    )
    found = [Row(*row[:4], row[4] if row[4] >= 0 else None) for row in rows]
    found = [row for row, is_ignored in zip(found, matches.is_ignored[level], strict=True) if not is_ignored]
    objects = matches.objects
    truth = [
        Row(1.0, image, label, box, number)
        for number, (image, label, box, is_ignored) in enumerate(
            zip(
                objects.images.tolist(),
                objects.labels.tolist(),
                objects.boxes_xywh.tolist(),
                objects.is_ignored,
                strict=True,
            )
        )
        if not is_ignored
    ]
    return found, truth


def naive_iou(a: list[float], b: list[float]) -> float:
    sides = [max(0.0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 2), st.sampled_from([0.5, 0.75, 0.95]))
def test_curve_and_ap_are_recomputed_from_the_table(
    case: tuple[dict[str, Any], list[dict[str, Any]]], label: int, iou: float
) -> None:
    matches = match(read_table(*case))
    found, truth = table_of(matches, iou)
    own, objects = [row for row in found if row.label == label], sum(row.label == label for row in truth)
    hits, points = 0, []
    for kept, row in enumerate(own, start=1):
        hits += row.found is not None
        points.append((row.score, hits / kept, hits / objects if objects else float("nan")))
    curve = precision_recall(matches, label, iou)
    for ours, theirs in zip((curve.scores, curve.precision, curve.recall), zip(*points, strict=True), strict=False):
        assert ours == pytest.approx(np.array(theirs), nan_ok=True)
    ap, voc = class_ap(matches, iou)[label], class_ap(matches, iou, "voc")[label]
    if not objects:
        assert np.isnan([ap, voc]).all()
        return
    best = [max((p for _, p, reached in points if reached >= recall), default=0.0) for recall in RECALLS]
    assert ap == pytest.approx(np.mean(best))
    steps = sorted({reached for *_, reached in points})
    areas = [
        (high - low) * max(p for _, p, reached in points if reached >= high)
        for low, high in zip([0.0, *steps], steps, strict=False)
    ]
    assert voc == pytest.approx(sum(areas))


@settings(max_examples=100, deadline=None)
@given(cases(), st.lists(st.integers(0, 10).map(lambda tenths: tenths / 10), min_size=3, max_size=3))
def test_the_confusion_matrix_is_recomputed_from_the_table(
    case: tuple[dict[str, Any], list[dict[str, Any]]], thresholds: list[float]
) -> None:
    matches = match(read_table(*case))
    found, truth = table_of(matches, 0.5)
    found = [row for row in found if row.score >= thresholds[row.label]]
    expected = np.zeros((4, 4), np.int64)
    missed = [row for row in truth if row.found not in {one.found for one in found}]
    for row in found:
        if row.found is not None:
            expected[row.label, row.label] += 1
            continue
        near = [(naive_iou(row.box, one.box), -n, one) for n, one in enumerate(missed) if one.image == row.image]
        iou, _, taken = max(near, default=(0.0, 0, None), key=lambda pair: pair[:2])
        if taken is not None and iou >= 0.5:
            missed.remove(taken)
        expected[taken.label if taken is not None and iou >= 0.5 else 3, row.label] += 1
    for one in missed:
        expected[one.label, 3] += 1
    assert confusion_matrix(matches, np.array(thresholds)).tolist() == expected.tolist()


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
    with pytest.raises(DataError, match=rf"result 2 of image_id 0: {field} is .*{bad}.*; it must be .*finite number"):
        matches_of([], rows)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("score", None, "score is None; it must be a finite number"),
        ("score", "high", "score is 'high'"),
        ("bbox", [1.0, 2.0, 3.0], r"bbox is \[1.0, 2.0, 3.0\]; it must be 4 finite numbers"),
        ("bbox", "nothing", "bbox is 'nothing'"),
    ],
)
def test_what_is_no_number_names_its_row(field: str, value: Any, says: str) -> None:
    rows = [result(0, 0, [0.0, 0.0, 9.0, 9.0], 0.5) for _ in range(3)]
    rows[2][field] = value
    with pytest.raises(DataError, match=f"result 3 of image_id 0: {says}"):
        matches_of([], rows)
    del rows[2][field]
    with pytest.raises(DataError, match=f"result 3 of image_id 0: {field} is None"):
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
    assert len(iou_of_hits(matches)) == 0 and np.isnan(resampled_ap(matches, np.ones((3, 1), np.int64))).all()
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
    assert sorted(iou_of_hits(matches)) == pytest.approx([0, 0.6, 1])
    measured = calibration(matches)
    assert measured.counts[[5, 9]].tolist() == [2, 1] and measured.counts.sum() == 3
    assert measured.precisions[[5, 9]].tolist() == [0.5, 1.0]
    assert measured.error == pytest.approx((2 * 0.05 + 0.05) / 3)


def test_an_image_that_counts_twice_is_two_images() -> None:
    truth, results = truth_of([annotation(1, 0, 0, OBJECT), annotation(2, 1, 0, OBJECT)], 2), []
    results = [result(0, 0, FAR, 0.9), result(0, 0, OBJECT, 0.8), result(1, 0, OBJECT, 0.7)]
    twice = truth_of([*truth["annotations"], annotation(3, 2, 0, OBJECT)], 3)
    copied = [*results, *(r | {"image_id": 2} for r in results if r["image_id"] == 1)]
    weighted = resampled_ap(match(read_table(truth, results)), np.array([[1, 2], [1, 1], [0, 3], [0, 0]]))
    assert weighted[0, :, 0] == pytest.approx(
        resampled_ap(match(read_table(twice, copied)), np.ones((1, 3), int))[0, :, 0]
    )
    assert weighted[1, :, 0].mean() == pytest.approx(class_ap(match(read_table(truth, results)))[0])
    assert weighted[2, :, 0] == pytest.approx(1)
    assert np.isnan(weighted[3]).all()


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
