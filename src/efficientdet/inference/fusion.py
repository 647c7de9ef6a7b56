"""Weighted box fusion: what several detectors, or views, find in one image becomes one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def weighted_box_fusion(
    boxes_xyxy: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    *,
    iou_threshold: float = 0.55,
    score: Literal["mean", "max"] = "mean",
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Fuse the boxes of M models (Solovyev, Wang and Gabruska 2021, section 3).

    Boxes of all models, best first, each join the fused box of their class that they overlap most, if the IoU is above
    the threshold, and move it to the mean of its members, weighed by score.

    Args:
        boxes_xyxy: of each model, (N_m, 4) in the same pixels; boxes without an area are left out.
        scores: of each model, (N_m,), at most 1; boxes with a score of 0 are left out.
        labels: of each model, (N_m,) integers.
        weights: of each model, positive; None for 1.
        iou_threshold: of membership.
        score: of a fused box: `mean`, that of its members, times the share of the models that voted for it (eq. 6); or
            `max`, the best of them, where a model does not see all of the image.

    Returns:
        Fused boxes (N, 4) float32, scores (N,) float32 and labels (N,) int64, best first.
    """
    factors = np.ones(len(boxes_xyxy)) if weights is None else np.asarray(weights, dtype=np.float64)
    models = np.repeat(np.arange(len(boxes_xyxy)), [len(np.asarray(one)) for one in scores])
    boxes = np.concatenate([np.zeros((0, 4)), *(np.reshape(one, (-1, 4)) for one in boxes_xyxy)])
    votes = np.concatenate([np.zeros(0), *map(np.asarray, scores)]) * factors[models]
    classes = np.concatenate([np.zeros(0), *map(np.asarray, labels)]).astype(np.int64)
    usable = np.flatnonzero((votes > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    order = usable[np.argsort(-votes[usable], kind="stable")]
    fused, total = np.zeros((len(order), 4)), np.zeros(len(order))
    owner = np.zeros(len(order), np.int64)
    count, own_classes = 0, np.zeros(len(order), np.int64)
    for number, row in enumerate(order):
        iou = _iou(fused[:count], boxes[row]) * (own_classes[:count] == classes[row])
        place = int(iou.argmax()) if count else 0
        if not count or iou[place] <= iou_threshold:
            place = count
            count += 1
        owner[number], own_classes[place] = place, classes[row]
        total[place] += votes[row]
        fused[place] += (boxes[row] - fused[place]) * (votes[row] / total[place])
    members = np.bincount(owner, minlength=count)[:count]
    if score == "mean":
        final = total[:count] / members.clip(1) * np.minimum(members, len(factors)) / factors.sum()
    else:
        final = np.zeros(count)
        np.maximum.at(final, owner, votes[order])
        final /= factors.max(initial=0)
    best = np.argsort(-final, kind="stable")
    return fused[best].astype(np.float32), final[best].clip(0, 1).astype(np.float32), own_classes[best]


def _iou(boxes: Floats, box: Floats) -> Floats:
    """(N,) IoU of (N, 4) boxes with one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = sides.clip(0).prod(1)
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
    return np.asarray(shared / whole)
