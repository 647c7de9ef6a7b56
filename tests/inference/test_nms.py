"""Matrix NMS and box fusion against slow, literal versions of their papers' formulas."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.boxes import pairwise_iou
from efficientdet.inference import nms as module
from efficientdet.inference.nms import fuse_boxes, matrix_scores, weighted_box_fusion
from efficientdet.inference.postprocess import postprocess
from efficientdet.inference.settings import PostprocessSettings


def crowd(seed: int, count: int, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One picture's overlapping boxes, best first."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(10, 40, (count, 2))], 1)
    scores = np.sort(random.uniform(0.05, 1, count))[::-1].copy()
    labels = random.integers(0, classes, count)
    return (
        torch.tensor(boxes, dtype=torch.float32)[None],
        torch.tensor(scores, dtype=torch.float32)[None],
        torch.tensor(labels)[None],
    )


@pytest.mark.parametrize("seed", range(5))
def test_matrix_scores_equal_the_literal_formula(seed: int) -> None:
    boxes, scores, labels = crowd(seed, 25)
    iou = pairwise_iou(boxes[0].double(), boxes[0].double())
    expected = []
    for j in range(25):
        factors = [1.0]
        for i in range(j):
            if labels[0, i] != labels[0, j]:
                continue
            doubt = max((float(iou[k, i]) for k in range(i) if labels[0, k] == labels[0, i]), default=0.0)
            factors.append(math.exp(-(float(iou[i, j]) ** 2) / 0.5) / math.exp(-(doubt**2) / 0.5))
        expected.append(float(scores[0, j]) * min(factors))
    assert matrix_scores(boxes, scores, labels, 0.5)[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_fused_boxes_are_the_weighted_means_of_their_clusters(seed: int) -> None:
    boxes, scores, labels = crowd(seed, 30)
    kept = [0, 3, 7]
    fused = fuse_boxes(boxes[:, kept], labels[:, kept], boxes, scores, labels, 0.3)
    iou = pairwise_iou(boxes[0], boxes[0])
    for place, leader in enumerate(kept):
        members = [
            n
            for n in range(30)
            if labels[0, n] == labels[0, leader]
            and iou[leader, n] > 0.3
            and iou[leader, n] == max(iou[k, n] for k in kept if labels[0, k] == labels[0, n])
        ]
        expected = np.average(boxes[0, members].numpy(), axis=0, weights=scores[0, members].numpy())
        assert fused[0, place].tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def one_level(logits: list[list[float]]) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Raw outputs of as many anchors as there are rows, whose boxes are the anchors."""
    anchors = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(len(logits))])
    return [torch.tensor([logits])], [torch.zeros(1, len(logits), 4)], anchors


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]), st.integers(1, 3), st.integers(1, 120))
def test_hard_nms_of_many_that_overlap_is_that_of_the_rounds(
    seed: int, iou_threshold: float, classes: int, most: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = 60 * torch.rand(2, 700, 2, generator=generator)
    boxes = torch.cat([corners, corners + 4 + 30 * torch.rand(2, 700, 2, generator=generator)], 2).round(decimals=1)
    scores = (
        torch.rand(2, 700, generator=generator).mul(40).round().div(40).sort(1, descending=True).values
    )  # many are equal
    labels = torch.randint(classes, (2, 700), generator=generator)
    chosen = PostprocessSettings(iou_threshold=iou_threshold, max_detections=most)
    found, places = module._take_best(boxes, scores, labels, iou_threshold, most)
    every = module.suppress(boxes, scores, labels, chosen)
    expected, order = every.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found, expected[:, :most])
    assert torch.equal(places * (found > 0), order[:, :most] * (found > 0))


@pytest.mark.parametrize("nms", ["hard", "soft", "matrix", "wbf"])
def test_boxes_that_touch_nothing_keep_place_and_score(nms: str) -> None:
    raw = one_level([[2.0, -9.0], [-9.0, 1.0], [0.5, -9.0]])
    found = postprocess(*raw, PostprocessSettings(score_threshold=0.3, nms=nms))
    assert found.counts.tolist() == [3]
    assert found.labels[0].tolist() == [0, 1, 0]
    assert found.scores[0].tolist() == pytest.approx(torch.tensor([2.0, 1.0, 0.5]).sigmoid().tolist())
    assert torch.allclose(found.boxes_xyxy[0], raw[2])


def test_wbf_moves_the_kept_box_towards_what_it_suppresses() -> None:
    anchors = torch.tensor([[0.0, 0.0, 100.0, 100.0], [10.0, 0.0, 110.0, 100.0]])
    logits, deltas = [torch.tensor([[[2.0], [2.0]]])], [torch.zeros(1, 2, 4)]
    found = postprocess(logits, deltas, anchors, PostprocessSettings(nms="wbf"))
    assert found.counts.tolist() == [1]
    assert found.boxes_xyxy[0, 0].tolist() == pytest.approx([5.0, 0.0, 105.0, 100.0])


def test_argmax_gives_an_anchor_one_class_where_pairs_gives_it_two() -> None:
    raw = one_level([[2.0, 1.0], [-9.0, 0.5]])
    pairs = postprocess(*raw, PostprocessSettings(score_threshold=0.3))
    argmax = postprocess(*raw, PostprocessSettings(score_threshold=0.3, candidates="argmax"))
    assert (pairs.counts.item(), argmax.counts.item()) == (3, 2)
    assert argmax.labels[0, :2].tolist() == [0, 1]


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
@given(cases(), st.sampled_from([0.3, 0.55]))
def test_the_same_as_the_formula(case: Any, iou_threshold: float) -> None:
    """Section 3 of the paper, step by step, in lists."""
    found = weighted_box_fusion(*case, iou_threshold=iou_threshold)
    assert_same(found, by_the_paper(*case, iou_threshold))


def by_the_paper(boxes: Any, scores: Any, labels: Any, weights: list[float], iou_threshold: float) -> Any:
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
    final = [np.mean(v) * min(len(weights), len(v)) / sum(weights) for v in votes]
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
@given(cases(), st.sampled_from([0.3, 0.55]))
def test_the_same_as_the_package_of_its_authors(package: ModuleType, case: Any, iou_threshold: float) -> None:
    expected = package.weighted_boxes_fusion(*case, iou_thr=iou_threshold)
    expected = (expected[0], expected[1].clip(0, 1), expected[2])
    assert_same(weighted_box_fusion(*case, iou_threshold=iou_threshold), expected)
