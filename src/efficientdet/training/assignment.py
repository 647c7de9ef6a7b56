"""Assignment of boxes to anchors: argmax matching at IoU 0.5, with a forced best anchor for each box.

Source: google/automl efficientdet, anchors.py and argmax_matcher.py; as in RetinaNet (Lin et al. 2017, section 4.1),
except that no anchor is ignored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efficientdet.boxes import encode_boxes, pairwise_iou

IOU_THRESHOLD = 0.5
# Anchors whose IoU differs by less than this fraction tie, and the one with the lowest index is forced: for a small box
# inside many equal anchors, rounding would decide otherwise.
TIE_TOLERANCE = 1e-5
BACKGROUND = -1


class Matches(NamedTuple):
    """Targets of one image; those of a batch have a dimension B in front.

    Attributes:
        labels: (A,) int64: the class of the box assigned to each anchor, -1 for background.
        deltas: (A, 4) float32 (dx, dy, dw, dh): the box head's targets; 0 for background.
    """

    labels: Tensor
    deltas: Tensor

    def normalizer(self) -> Tensor:
        """Scalar float32: number of anchors with a box, plus one; losses are divided by it."""
        return (self.labels != BACKGROUND).sum() + 1.0


@torch.no_grad()
def match_batch(anchors_xyxy: Tensor, boxes_xyxy: list[Tensor], labels: list[Tensor]) -> Matches:
    """`match_anchors` of every image, stacked: labels (B, A) and deltas (B, A, 4).

    Image by image: the IoUs of all boxes of a batch with all anchors would not fit in memory.
    """
    matches = [match_anchors(anchors_xyxy, b, c) for b, c in zip(boxes_xyxy, labels, strict=True)]
    return Matches(torch.stack([match.labels for match in matches]), torch.stack([match.deltas for match in matches]))


def match_anchors(anchors_xyxy: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> Matches:
    """Assign boxes to anchors.

    An anchor gets the box with which its IoU is largest, if that is at least 0.5. In addition, every box gets the
    anchor that fits it best, however badly; of several boxes with the same best anchor, the first gets it.

    Args:
        anchors_xyxy: (A, 4) float32, pixels of the network's input.
        boxes_xyxy: (N, 4) float32 in the same pixels; N may be 0.
        labels: (N,) int64, 0-based.

    Returns:
        The matches.
    """
    count = anchors_xyxy.shape[0]
    if boxes_xyxy.shape[0] == 0:
        return Matches(labels.new_full((count,), BACKGROUND), anchors_xyxy.new_zeros(count, 4))
    iou = pairwise_iou(boxes_xyxy.float(), anchors_xyxy)  # (N, A)
    best_iou, box_of_anchor = iou.max(0)  # (A,)
    positive = best_iou >= IOU_THRESHOLD

    best_of_box = iou.amax(1, keepdim=True)  # (N, 1)
    is_best = iou >= best_of_box * (1 - TIE_TOLERANCE)
    forced = is_best.to(torch.uint8).argmax(1)  # (N,): the first of the tied
    # A plain scatter would leave undefined which of several boxes gets an anchor. A box that meets no anchor gets none.
    no_box = len(forced)
    indices = torch.arange(no_box, device=iou.device).masked_fill(best_of_box[:, 0] == 0, no_box)
    forced_box = torch.full((count,), no_box, device=iou.device).scatter_reduce(0, forced, indices, "amin")
    is_forced = forced_box < no_box
    box_of_anchor = torch.where(is_forced, forced_box, box_of_anchor)
    positive = positive | is_forced

    target_boxes = boxes_xyxy[box_of_anchor].float()
    deltas = torch.where(positive[:, None], encode_boxes(target_boxes, anchors_xyxy), 0.0)
    return Matches(torch.where(positive, labels[box_of_anchor], BACKGROUND), deltas)
