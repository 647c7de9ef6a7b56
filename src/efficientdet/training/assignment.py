"""Assignment of boxes to anchors: by IoU, by ATSS, or by how well the predictions of an anchor are aligned.

By IoU: argmax matching at IoU 0.5, with a forced best anchor for each box. Source: google/automl efficientdet,
anchors.py and argmax_matcher.py; as in RetinaNet (Lin et al. 2017, section 4.1), except that no IoU leaves an anchor
out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from efficientdet.boxes import aligned_iou, box_areas, decode_deltas, encode_boxes, intersection, pairwise_iou

IOU_THRESHOLD = 0.5
# Anchors whose IoU differs by less than this fraction tie, and the one with the lowest index is forced: for a small box
# inside many equal anchors, rounding would decide otherwise.
TIE_TOLERANCE = 1e-5
BACKGROUND = -1
# An anchor that trains no class: it lies in an ignored region.
IGNORED = -2
# An anchor lies in an ignored region if at least this share of the anchor does.
IGNORED_SHARE = 0.5
# ATSS: the anchors of this many nearest places of each level are candidates for a box (Zhang et al. 2020, section 3.2).
ATSS_PLACES = 9
# TOOD: anchors for each box, and the exponent of the IoU in the alignment (Feng et al. 2021, section 4).
ALIGNED_ANCHORS, IOU_EXPONENT = 13, 6
# Anchor sides by which a box may be predicted away from its anchor; beyond, areas would overflow.
LARGEST_DELTA = 1000.0
# Pixels by which rounding may move the center of an anchor.
ROUNDING = 1e-3


class Matches(NamedTuple):
    """Targets of one image; those of a batch have a dimension B in front.

    Attributes:
        labels: (A,) int64: the class of the box assigned to each anchor, BACKGROUND or IGNORED.
        deltas: (A, 4) float32 (dx, dy, dw, dh): the box head's targets; 0 for anchors without a box.
        alignment: (A,) float, from 0 to 1: the class head's target for the anchor's class, and the weight of the
            anchor's box loss; 0 for anchors without a box. None where both are 1.
    """

    labels: Tensor
    deltas: Tensor
    alignment: Tensor | None = None

    def normalizer(self) -> Tensor:
        """Scalar float: number of anchors with a box, or sum of their alignment, plus one; losses are divided by it."""
        return (self.labels >= 0 if self.alignment is None else self.alignment).sum() + 1.0


# Matches of an image from anchors, boxes and labels, as `match_anchors`.
Matcher = Callable[[Tensor, Tensor, Tensor], Matches]


@torch.no_grad()
def match_batch(
    anchors_xyxy: Tensor, boxes_xyxy: list[Tensor], labels: list[Tensor], ignored_xyxy: list[Tensor] | None = None,
    matchers: Sequence[Matcher] | None = None,
) -> Matches:  # fmt: skip
    """The matches of every image, stacked: labels (B, A) and deltas (B, A, 4); ignored regions left out.

    Image by image: the IoUs of all boxes of a batch with all anchors would not fit in memory. Each image has its own
    of the matchers; by default it is `match_anchors`.
    """
    images = zip(matchers or [match_anchors] * len(boxes_xyxy), boxes_xyxy, labels, strict=True)
    found_labels, deltas, alignments = zip(*(match(anchors_xyxy, b, c) for match, b, c in images), strict=True)
    aligned = None if alignments[0] is None else torch.stack(alignments)
    found = Matches(torch.stack(found_labels), torch.stack(deltas), aligned)
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

    return _matches(positive, box_of_anchor, anchors_xyxy, boxes_xyxy, labels)


def _matches(
    positive: Tensor, box_of_anchor: Tensor, anchors_xyxy: Tensor, boxes_xyxy: Tensor, labels: Tensor
) -> Matches:
    target_boxes = boxes_xyxy[box_of_anchor].float()
    deltas = torch.where(positive[:, None], encode_boxes(target_boxes, anchors_xyxy), 0.0)
    return Matches(torch.where(positive, labels[box_of_anchor], BACKGROUND), deltas)


def match_atss(
    anchors_xyxy: Tensor, boxes_xyxy: Tensor, labels: Tensor, level_counts: Sequence[int], per_place: int
) -> Matches:
    """Assign boxes to anchors by adaptive training sample selection (ATSS; Zhang et al. 2020, algorithm 1).

    Candidates for a box are the anchors of the 9 nearest places of each level. It gets those whose center lies in it
    (see `_lies_in`) and whose IoU with it is at least the mean plus the standard deviation of the candidates'. Of
    several boxes, an anchor gets that with which its IoU is largest.

    Args:
        anchors_xyxy: (A, 4) float32, pixels of the network's input, in the order of `make_anchors`.
        boxes_xyxy: (N, 4) float32 in the same pixels; N may be 0.
        labels: (N,) int64, 0-based.
        level_counts: number of anchors of each level.
        per_place: number of anchors with the same center.

    Returns:
        The matches.
    """
    if boxes_xyxy.shape[0] == 0:
        return match_anchors(anchors_xyxy, boxes_xyxy, labels)
    boxes = boxes_xyxy.float()
    distances = torch.cdist(
        _centers(boxes), _centers(anchors_xyxy[::per_place]), compute_mode="donot_use_mm_for_euclid_dist"
    )
    places = [count // per_place for count in level_counts]
    levels = zip(torch.split(distances, places, 1), itertools.accumulate(places, initial=0), strict=False)
    nearest = [x.topk(min(ATSS_PLACES, x.shape[1]), largest=False).indices + start for x, start in levels]
    at_place = torch.arange(per_place, device=boxes.device)
    candidates = (torch.cat(nearest, 1)[..., None] * per_place + at_place).flatten(1)  # (N, C)
    iou = aligned_iou(boxes[:, None], anchors_xyxy[candidates])
    is_good = iou >= iou.mean(1, keepdim=True) + iou.std(1, keepdim=True)
    is_good &= _lies_in(anchors_xyxy[candidates], boxes[:, None], anchors_xyxy[0])
    best_iou, box_of_anchor = (  # (A,)
        iou.new_zeros(len(boxes), len(anchors_xyxy)).scatter_(1, candidates, iou.where(is_good, 0.0)).max(0)
    )
    return _matches(best_iou > 0, box_of_anchor, anchors_xyxy, boxes_xyxy, labels)


def match_task_aligned(
    anchors_xyxy: Tensor, boxes_xyxy: Tensor, labels: Tensor, class_logits: Sequence[Tensor],
    box_deltas: Sequence[Tensor], per_place: int,
) -> Matches:  # fmt: skip
    """Assign boxes to anchors by task alignment (TOOD; Feng et al. 2021, section 3.2).

    The alignment of an anchor with a box is t = s * u**6, with its score s for the box's class and the IoU u of the box
    that it predicts. A box gets the 13 anchors of largest t among those whose center lies in it (see `_lies_in`); of
    several boxes, an anchor gets that with which u is largest. Then the t of a box's anchors are scaled, so that the
    largest is the largest u among them.

    Args:
        anchors_xyxy: (A, 4) float32, pixels of the network's input, in the order of `make_anchors`.
        boxes_xyxy: (N, 4) float32 in the same pixels; N may be 0.
        labels: (N,) int64, 0-based.
        class_logits: over levels (A_l, K) float, what is predicted now; taken as float32, or float64 if they are.
        box_deltas: over levels (A_l, 4) float, the same.
        per_place: number of anchors with the same center.

    Returns:
        The matches, with the scaled t as alignment.
    """
    dtype = torch.promote_types(class_logits[0].dtype, torch.float32)
    if boxes_xyxy.shape[0] == 0:
        alignment = torch.zeros(len(anchors_xyxy), dtype=dtype, device=anchors_xyxy.device)
        return match_anchors(anchors_xyxy, boxes_xyxy, labels)._replace(alignment=alignment)
    is_inside = _lies_in(anchors_xyxy[::per_place], boxes_xyxy[:, None].float(), anchors_xyxy[0])
    pairs = box, anchor = is_inside.repeat_interleave(per_place, 1).nonzero(as_tuple=True)
    deltas = torch.cat(list(box_deltas))[anchor].to(dtype).clamp(min=-LARGEST_DELTA, max=LARGEST_DELTA)
    scores = torch.cat(list(class_logits))[anchor, labels[box]].to(dtype).sigmoid()
    iou_of_pairs = aligned_iou(boxes_xyxy[box].to(dtype), decode_deltas(deltas, anchors_xyxy[anchor]))
    none = scores.new_zeros(len(labels), len(anchors_xyxy))
    iou = none.index_put(pairs, iou_of_pairs)  # (N, A)
    t = none.index_put(pairs, scores * iou_of_pairs**IOU_EXPONENT)
    best_t, candidates = t.topk(min(ALIGNED_ANCHORS, t.shape[1]), 1)  # (N, 13)
    own_iou, box_of_anchor = (  # (A,)
        none.scatter(1, candidates, iou.gather(1, candidates).where(best_t > 0, 0.0)).max(0)
    )
    own_t = torch.where(own_iou > 0, t.gather(0, box_of_anchor[None])[0], 0.0)
    largest_t, largest_iou = (  # of the anchors of each box, given back to each anchor
        values.new_zeros(len(labels)).scatter_reduce(0, box_of_anchor, values, "amax")[box_of_anchor]
        for values in (own_t, own_iou)
    )
    alignment = own_t / largest_t.clamp(min=torch.finfo(dtype).tiny) * largest_iou
    return _matches(own_iou > 0, box_of_anchor, anchors_xyxy, boxes_xyxy, labels)._replace(alignment=alignment)


def _centers(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2


def _lies_in(anchors_xyxy: Tensor, boxes_xyxy: Tensor, first_anchor: Tensor) -> Tensor:
    """Whether the centers of anchors lie in boxes, (..., 4) twice to (...) bool.

    A box counts as at least a cell of the finest level wide and high: otherwise a small box between the centers would
    get no anchor. The first anchor's center, in the middle of such a cell at the corner, says how large that is.
    """
    sides = torch.maximum(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 2 * _centers(first_anchor) + ROUNDING)
    return ((_centers(anchors_xyxy) - _centers(boxes_xyxy)).abs() <= sides / 2).all(-1)
