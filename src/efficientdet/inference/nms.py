"""Suppression: hard and Gaussian soft NMS, matrix NMS, and fusion of the boxes of one model, or of several.

Hard and soft NMS run in rounds. A candidate that no better one of its class overlaps is final; all such are settled at
once, and what overlaps them decays (Gaussian soft NMS) or is dropped (hard NMS). Because a score only ever falls, this
gives exactly what the textbook's loop over boxes gives, in as many rounds as the longest chain of overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from efficientdet.boxes import aligned_iou, pairwise_iou
from efficientdet.inference.settings import PostprocessSettings

# Candidates that are suppressed among themselves at a time.
BLOCK = 192
# exp of this is 0 in float32: hard NMS written as a decay.
DROP = -1e4
# Matrix NMS compares all candidates with each other; its paper takes the best 500 of each class.
MATRIX_CANDIDATES = 1000


Floats = NDArray[np.float64]


class Overlaps(NamedTuple):
    """Pairs of boxes of one class and image that overlap, so that one may suppress the other; (P,) each.

    Attributes:
        first: int64, row * M + index of one box.
        second: int64, row * N + index of the other.
        decay: float32, negative: what the better one adds to the other's log score.
    """

    first: Tensor
    second: Tensor
    decay: Tensor


def _overlaps(
    boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, settings: PostprocessSettings
) -> Overlaps:
    """Of (B, M) boxes with (B, N) others; of boxes with themselves each pair once, the earlier one first."""
    same = labels[:, :, None] == other_labels[:, None, :]
    rows, first, second = (same.triu(1) if others is boxes else same).nonzero(as_tuple=True)
    first, second = rows * boxes.shape[1] + first, rows * others.shape[1] + second
    iou = aligned_iou(boxes.reshape(-1, 4)[first], others.reshape(-1, 4)[second])
    touches = (iou > (0 if settings.nms == "soft" else settings.iou_threshold)).nonzero()[:, 0]
    iou = iou[touches]
    decay = -iou.square() / settings.sigma if settings.nms == "soft" else torch.full_like(iou, DROP)
    return Overlaps(first[touches], second[touches], decay)


def suppress(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings) -> Tensor:
    """Scores after suppression within each class.

    Args:
        boxes_xyxy: (B, M, 4) float32.
        scores: (B, M) float32, best first; 0 marks an unused row.
        labels: (B, M) int64.
        settings: kind and its parameters.

    Returns:
        (B, M) float32: unchanged or decayed scores; 0 for what hard NMS drops.
    """
    first, second, decay = _overlaps(boxes_xyxy, labels, boxes_xyxy, labels, settings)
    final, shape = scores.flatten(), scores.shape
    undecided = final > 0
    while len(first):
        # Of equal scores the earlier one comes first.
        is_first = final[first] >= final[second]
        better, worse = torch.where(is_first, first, second), torch.where(is_first, second, first)
        both = undecided[better] & undecided[worse]
        waits = torch.zeros_like(undecided).index_fill_(0, worse[both], True)
        settled = undecided & ~waits
        undecided = undecided & waits
        acts = settled[better]
        total = torch.zeros_like(final).index_add_(0, worse[acts], decay[acts])
        final = torch.where(undecided, final * total.exp(), final)
        undecided = undecided & (final > 0)
        open_pairs = (undecided[first] & undecided[second]).nonzero()[:, 0]
        first, second, decay = first[open_pairs], second[open_pairs], decay[open_pairs]
    return final.view(shape)


def _suppress_best(
    boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings
) -> tuple[Tensor, Tensor]:
    """The best scores after hard or soft NMS, and the indices of their boxes, (B, D) each.

    The best candidates are suppressed among themselves, a block at a time. A score in the block that is at least as
    high as every score outside it is final, since scores only fall; all other candidates then decay by it. So at most a
    block is compared with all candidates, and most images need one block.
    """
    total = scores.shape[1]
    wanted = min(settings.max_detections, total)
    size = min(max(BLOCK, 3 * wanted // 2), total)
    final = torch.zeros_like(scores)
    while True:
        # Not topk, which takes any of several equal scores, such as those that are 1.0 when rounded.
        top, indices = (x[:, : size + 1] for x in scores.sort(dim=1, descending=True, stable=True))
        beyond = top[:, size:].sum(1, keepdim=True)  # (B, 1): the best score outside the block, or 0
        top, indices = top[:, :size], indices[:, :size]
        block, block_labels = pick_boxes(boxes, indices), labels.gather(1, indices)
        finals = suppress(block, top, block_labels, settings)
        settled = (finals > 0) & (finals >= beyond)
        final.scatter_add_(1, indices, finals * settled)
        if not bool(((final > 0).sum(1, keepdim=True) < wanted).logical_and(beyond > 0).any()):
            best, order = final.sort(dim=1, descending=True, stable=True)
            return best[:, :wanted], order[:, :wanted]
        if settings.nms != "soft" and boxes.device.type == "cpu":
            return _take_best(boxes, scores, labels, settings.iou_threshold, wanted)
        first, second, decay = _overlaps(block, block_labels, boxes, labels, settings)
        acts = settled.flatten()[first]
        log_factors = torch.zeros_like(scores).flatten().index_add_(0, second[acts], decay[acts])
        scores = scores * log_factors.exp().view(scores.shape)
        scores = scores.masked_fill((final > 0) | (scores < settings.lowest_threshold), 0.0)


def _take_best(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, wanted: int
) -> tuple[Tensor, Tensor]:
    """As `_suppress_best` by hard NMS: the textbook's loop, fastest where hundreds of candidates overlap each other."""
    best, order = scores.new_zeros(len(scores), wanted), torch.zeros(len(scores), wanted, dtype=torch.int64)
    for row, (own_boxes, own_scores, own_labels) in enumerate(zip(boxes, scores, labels, strict=True)):
        ranked = own_scores.sort(descending=True, stable=True).indices
        ranked = ranked[: int((own_scores > 0).sum())]
        left, top, right, bottom = np.ascontiguousarray(own_boxes[ranked].detach().numpy().T)
        areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
        classes, is_left = own_labels[ranked].numpy(), np.ones(len(ranked), bool)
        kept = list[int]()
        while len(kept) < wanted and is_left.any():
            one = int(is_left.argmax())
            kept.append(one)
            width = np.minimum(right[one], right) - np.maximum(left[one], left)
            height = np.minimum(bottom[one], bottom) - np.maximum(top[one], top)
            shared = np.maximum(width, 0) * np.maximum(height, 0)
            union = np.maximum(areas[one] + areas - shared, np.finfo(np.float32).tiny)  # as in `boxes.aligned_iou`
            is_left &= (shared / union <= iou_threshold) | (classes != classes[one])
            is_left[one] = False
        places = ranked[kept]
        best[row, : len(kept)], order[row, : len(kept)] = own_scores[places], places
    return best, order


def best_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings
) -> tuple[Tensor, Tensor]:
    """Scores after the NMS that the settings name, best first, and the indices of their boxes: (B, D) each."""
    if settings.nms != "matrix":
        return _suppress_best(boxes, scores, labels, settings)
    size = min(scores.shape[1], max(MATRIX_CANDIDATES, settings.max_detections))
    final = matrix_scores(boxes[:, :size], scores[:, :size], labels[:, :size], settings.sigma)
    best, order = final.sort(dim=1, descending=True, stable=True)
    return best[:, : settings.max_detections], order[:, : settings.max_detections]


def pick_boxes(boxes: Tensor, indices: Tensor) -> Tensor:
    """(B, N, 4) boxes at (B, M) indices: (B, M, 4)."""
    return boxes.gather(1, indices[..., None].expand(-1, -1, 4))


def matrix_scores(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Scores after matrix NMS with the Gaussian kernel (Wang et al. 2020, SOLOv2, eq. 5): one pass, no rounds.

    A box decays by the better box that overlaps it most, less so if that one is itself overlapped by a better one.

    Args:
        boxes_xyxy: (B, M, 4) float32.
        scores: (B, M) float32, best first; 0 marks an unused row.
        labels: (B, M) int64.
        sigma: width of the kernel exp(-iou**2 / sigma).

    Returns:
        (B, M) float32 decayed scores.
    """
    order = torch.arange(boxes_xyxy.shape[1], device=boxes_xyxy.device)
    better = (order[:, None] < order[None, :]) & (labels[:, :, None] == labels[:, None, :])
    better = better & (scores > 0)[:, :, None]
    iou = pairwise_iou(boxes_xyxy, boxes_xyxy) * better  # (B, M, M): the row is the better one
    doubt = iou.amax(1)  # (B, M): how much each is overlapped by a better one
    decay = ((doubt.square()[:, :, None] - iou.square()) / sigma).exp()
    return scores * torch.where(better, decay, 1.0).amin(1).clamp(max=1.0)


def fuse_boxes(
    kept_xyxy: Tensor, kept_labels: Tensor, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float
) -> Tensor:
    """Boxes that hard NMS kept, each moved to the mean of its cluster, weighed by score (Solovyev et al. 2021).

    A cluster is the candidates of the kept box's class that overlap it by more than the threshold, and no other kept
    box more. Scores stay those of the kept boxes (the paper's `max` variant), since one model has no votes to average.

    Args:
        kept_xyxy: (B, D, 4) float32.
        kept_labels: (B, D) int64.
        boxes_xyxy: (B, N, 4) float32, all candidates.
        scores: (B, N) float32; 0 marks an unused row.
        labels: (B, N) int64.
        iou_threshold: of membership.

    Returns:
        (B, D, 4) float32.
    """
    iou = pairwise_iou(kept_xyxy, boxes_xyxy)  # (B, D, N)
    iou = iou.masked_fill(kept_labels[:, :, None] != labels[:, None, :], 0.0)
    best, owner = iou.max(1)  # (B, N)
    member = torch.nn.functional.one_hot(owner, iou.shape[1]).transpose(1, 2)  # (B, D, N)
    weights = member * (scores * (best > iou_threshold))[:, None, :]
    total = weights.sum(2, keepdim=True)
    fused = weights @ boxes_xyxy / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, fused, kept_xyxy)


def weighted_box_fusion(
    boxes_xyxy: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    *,
    iou_threshold: float = 0.55,
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

    Returns:
        Fused boxes (N, 4) float32, scores (N,) float32 and labels (N,) int64, best first. A score is the mean of the
        members', times the share of the models that voted (eq. 6).
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
    final = total[:count] / members.clip(1) * np.minimum(members, len(factors)) / factors.sum()
    best = np.argsort(-final, kind="stable")
    return fused[best].astype(np.float32), final[best].clip(0, 1).astype(np.float32), own_classes[best]


def _iou(boxes: Floats, box: Floats) -> Floats:
    """(N,) IoU of (N, 4) boxes with one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = sides.clip(0).prod(1)
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
    return np.asarray(shared / whole)
