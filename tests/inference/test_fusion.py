"""Weighted box fusion: by hand, against the formula of the paper, and against the authors' own package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.inference.fusion import weighted_box_fusion

BOX, MOVED, FAR = [10.0, 10.0, 50.0, 50.0], [14.0, 10.0, 54.0, 50.0], [60.0, 60.0, 90.0, 90.0]


def test_two_models_that_agree_and_one_that_is_alone() -> None:
    boxes, scores, labels = weighted_box_fusion([[BOX], [MOVED, FAR]], [[0.9], [0.3, 0.8]], [[1], [1, 0]])
    assert boxes.tolist() == [[pytest.approx(11.0), 10.0, pytest.approx(51.0), 50.0], FAR]
    assert scores == pytest.approx([(0.9 + 0.3) / 2, 0.8 / 2])  # one vote of two
    assert labels.tolist() == [1, 0]
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)


def test_classes_are_not_mixed() -> None:
    assert len(weighted_box_fusion([[BOX], [BOX]], [[0.9], [0.8]], [[0], [1]])[0]) == 2


def test_the_heavier_model_moves_the_box_more() -> None:
    boxes, scores, _ = weighted_box_fusion([[BOX], [MOVED]], [[0.5], [0.5]], [[0], [0]], [3, 1])
    assert boxes[0, 0] == pytest.approx(11.0)
    assert scores[0] == pytest.approx(0.5)


def test_of_parts_of_an_image_the_best_score_stays() -> None:
    boxes, scores, _ = weighted_box_fusion([[BOX], [MOVED], []], [[0.9], [0.3], []], [[0], [0], []], score="max")
    assert len(boxes) == 1 and scores[0] == pytest.approx(0.9)


def test_boxes_without_an_area_or_a_score_are_left_out() -> None:
    flat = [10.0, 90.0, 50.0, 90.0]
    assert weighted_box_fusion([[BOX, flat, FAR]], [[0.9, 0.8, 0.0]], [[0, 0, 0]])[0].tolist() == [BOX]


@pytest.mark.parametrize("models", [0, 1, 3])
def test_nothing(models: int) -> None:
    boxes, scores, labels = weighted_box_fusion([[]] * models, [[]] * models, [[]] * models)
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


corner, side = st.integers(0, 40), st.integers(1, 40)
box = st.tuples(corner, corner, side, side).map(
    lambda b: [b[0] / 100, b[1] / 100, (b[0] + b[2]) / 100, (b[1] + b[3]) / 100]
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, Any, Any, list[float]]:
    """Up to four models and three classes; no two scores are equal, since ties may be broken in any order."""
    counts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    scores = draw(st.lists(st.integers(1, 997), min_size=sum(counts), max_size=sum(counts), unique=True))
    boxes = draw(st.lists(box, min_size=sum(counts), max_size=sum(counts)))
    labels = draw(st.lists(st.integers(0, 2), min_size=sum(counts), max_size=sum(counts)))
    ends = np.cumsum(counts)[:-1]
    parts = [
        np.split(np.array(values), ends) for values in (np.reshape(boxes, (-1, 4)), np.array(scores) / 1000, labels)
    ]
    weights = draw(st.sampled_from([[1.0] * 4, [1.0, 2.0, 0.5, 4.0]]))[: len(counts)]
    return *parts, weights


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([0.3, 0.55]), st.sampled_from(["mean", "max"]))
def test_the_same_as_the_formula(case: Any, iou_threshold: float, score: Literal["mean", "max"]) -> None:
    """Section 3 of the paper, step by step, in lists."""
    found = weighted_box_fusion(*case, iou_threshold=iou_threshold, score=score)
    assert_same(found, by_the_paper(*case, iou_threshold, score))


def by_the_paper(boxes: Any, scores: Any, labels: Any, weights: list[float], iou_threshold: float, score: str) -> Any:
    rows = [
        (s * weight, weight, int(k), b)
        for weight, *model in zip(weights, boxes, scores, labels, strict=True)
        for b, s, k in zip(*model, strict=True)
    ]
    clusters: list[list[Any]] = []
    for row in sorted(rows, key=lambda row: -row[0]):
        places = [(iou(mean_box(c), row[3]), -n) for n, c in enumerate(clusters) if c[0][2] == row[2]]
        best = max(places, default=(0.0, 0))
        if best[0] > iou_threshold:
            clusters[-best[1]].append(row)
        else:
            clusters.append([row])
    votes = [[row[0] for row in cluster] for cluster in clusters]
    means = [np.mean(v) * min(len(weights), len(v)) / sum(weights) for v in votes]
    final = means if score == "mean" else [max(v) / max(weights) for v in votes]
    return [mean_box(c) for c in clusters], np.clip(final, 0, 1), [c[0][2] for c in clusters]


def mean_box(cluster: list[Any]) -> Any:
    return sum(row[0] * row[3] for row in cluster) / sum(row[0] for row in cluster)


def iou(a: Any, b: Any) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def assert_same(found: Any, expected: Any) -> None:
    assert len(found[0]) == len(expected[0])
    rows = [
        sorted(zip(np.round(x[1], 4), map(int, x[2]), np.round(x[0], 4).tolist(), strict=True))
        for x in (found, expected)
    ]
    for ours, theirs in zip(*rows, strict=True):
        assert ours[1] == theirs[1]
        assert (ours[0], *ours[2]) == pytest.approx((theirs[0], *theirs[2]), abs=3e-4)


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The module of `ensemble-boxes` that fuses; the package itself would import numba, which this does not need."""
    folder = importlib.util.find_spec("ensemble_boxes")
    if folder is None or folder.origin is None:
        pytest.skip("ensemble-boxes is missing (pip install --no-deps ensemble-boxes)")
    spec = importlib.util.spec_from_file_location("wbf", Path(folder.origin).with_name("ensemble_boxes_wbf.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([0.3, 0.55]), st.sampled_from(["mean", "max"]))
def test_the_same_as_the_package_of_its_authors(
    package: ModuleType, case: Any, iou_threshold: float, score: Literal["mean", "max"]
) -> None:
    kind = {"mean": "avg", "max": "max"}[score]
    expected = package.weighted_boxes_fusion(*case, iou_thr=iou_threshold, conf_type=kind)
    expected = (expected[0], expected[1].clip(0, 1), expected[2])
    assert_same(weighted_box_fusion(*case, iou_threshold=iou_threshold, score=score), expected)
