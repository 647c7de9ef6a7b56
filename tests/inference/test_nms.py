"""Matrix NMS and box fusion against slow, literal versions of their papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from efficientdet.boxes import pairwise_iou
from efficientdet.inference.nms import fuse_boxes, matrix_scores
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
