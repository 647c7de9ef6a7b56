"""Assignment of boxes to anchors: argmax matching at IoU 0.5, with a forced best anchor for each box.

Source: google/automl efficientdet, anchors.py and argmax_matcher.py; as in RetinaNet (Lin et al. 2017, section 4.1),
except that no IoU leaves an anchor out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efficientdet.boxes import box_areas, encode_boxes, intersection, pairwise_iou

IOU_THRESHOLD = 0.5
# Anchors whose IoU differs by less than this fraction tie, and the one with the lowest index is forced: for a small box
# inside many equal anchors, rounding would decide otherwise.
TIE_TOLERANCE = 1e-5
BACKGROUND = -1
# An anchor that trains no class: it lies in an ignored region.
IGNORED = -2
# An anchor lies in an ignored region if at least this share of the anchor does.
IGNORED_SHARE = 0.5


class Matches(NamedTuple):
    """Targets of one image; those of a batch have a dimension B in front.

    Attributes:
        labels: (A,) int64: the class of the box assigned to each anchor, BACKGROUND or IGNORED.
        deltas: (A, 4) float32 (dx, dy, dw, dh): the box head's targets; 0 for anchors without a box.
    """

    labels: Tensor
    deltas: Tensor

    def normalizer(self) -> Tensor:
        """Scalar float32: number of anchors with a box, plus one; losses are divided by it."""
        return (self.labels >= 0).sum() + 1.0


@torch.no_grad()
def match_batch(
    anchors_xyxy: Tensor, boxes_xyxy: list[Tensor], labels: list[Tensor], ignored_xyxy: list[Tensor] | None = None
) -> Matches:
    """`match_anchors` of every image, stacked: labels (B, A) and deltas (B, A, 4); ignored regions left out.

    Image by image: the IoUs of all boxes of a batch with all anchors would not fit in memory.
    """
    matches = [match_anchors(anchors_xyxy, b, c) for b, c in zip(boxes_xyxy, labels, strict=True)]
    found = Matches(torch.stack([match.labels for match in matches]), torch.stack([match.deltas for match in matches]))
    return (
        found
        if ignored_xyxy is None
        else found._replace(labels=leave_out_ignored(found.labels, anchors_xyxy, ignored_xyxy))
    )


@torch.no_grad()
def leave_out_ignored(labels: Tensor, anchors_xyxy: Tensor, ignored_xyxy: list[Tensor]) -> Tensor:
    """Labels with IGNORED for the background anchors that lie in an ignored region, by half of the anchor or more.

    The reference code drops crowds, so that anchors in them train as background.

    Args:
        labels: (B, A) int64, each anchor's class or BACKGROUND.
        anchors_xyxy: (A, 4) float32, pixels of the network's input.
        ignored_xyxy: B tensors (M_i, 4) float32 in the same pixels; M_i may be 0.

    Returns:
        (B, A) int64.
    """
    if not any(len(regions) for regions in ignored_xyxy):
        return labels
    areas = box_areas(anchors_xyxy)  # (A,)
    lies_in = []
    for regions in ignored_xyxy:
        shared = torch.zeros_like(areas)
        for region in regions.float():  # few, and the pairs of many would take memory
            shared = torch.maximum(shared, box_areas(intersection(anchors_xyxy, region)))
        lies_in.append((shared >= IGNORED_SHARE * areas) & (shared > 0))
    return labels.masked_fill((labels == BACKGROUND) & torch.stack(lies_in), IGNORED)


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
