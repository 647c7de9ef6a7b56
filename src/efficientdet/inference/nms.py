"""Other ways than greedy suppression to make one box of many: matrix NMS, and weighted boxes fusion."""

from __future__ import annotations

import torch
from torch import Tensor

from efficientdet.boxes import pairwise_iou

# Matrix NMS compares all candidates with each other; its paper takes the best 500 of each class.
MATRIX_CANDIDATES = 1000


def matrix_scores(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Scores after matrix NMS with the Gaussian kernel (Wang et al. 2020, SOLOv2, eq. 5): one pass, no rounds.

    A box decays by the better box that argues most strongly against it, less so where that one is itself in doubt.

    Args:
        boxes_xyxy: (B, M, 4) float32.
        scores: (B, M) float32, best first; 0 marks an empty place.
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
        scores: (B, N) float32; 0 marks an empty place.
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
