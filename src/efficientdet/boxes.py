"""Box geometry: areas, IoU, clipping, and the coding of boxes as deltas from anchors. All boxes are xyxy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Clamp of dw and dh before exp: a box is at most 1000 / 16 times as large as its anchor, so that nothing overflows.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)
CODING_EPSILON = 1e-8


def box_areas(boxes_xyxy: Tensor) -> Tensor:
    """Areas of (..., 4) boxes_xyxy, in the square of their unit: (...,). Degenerate boxes have area 0."""
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., N, 4) and (..., M, 4) to (..., N, M). Two empty boxes give 0."""
    areas = box_areas(first_xyxy)[..., :, None], box_areas(second_xyxy)[..., None, :]
    return _iou(first_xyxy[..., :, None, :], second_xyxy[..., None, :, :], *areas)


def aligned_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Intersection over union of boxes in the same place of both: (..., 4) twice to (...). Two empty boxes give 0."""
    return _iou(first_xyxy, second_xyxy, box_areas(first_xyxy), box_areas(second_xyxy))


def _iou(first: Tensor, second: Tensor, first_areas: Tensor, second_areas: Tensor) -> Tensor:
    # One coordinate at a time: several times as fast as (..., 2) slices.
    left, top, right, bottom = first.unbind(-1)
    other_left, other_top, other_right, other_bottom = second.unbind(-1)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    shared = width * height
    union = first_areas + second_areas - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def intersection(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Boxes that boxes share, (..., 4) twice to (..., 4); where they share nothing, right < left or bottom < top."""
    low, high = torch.maximum(first_xyxy, second_xyxy), torch.minimum(first_xyxy, second_xyxy)
    return torch.cat([low[..., :2], high[..., 2:]], -1)


def generalized_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """IoU minus the share of the smallest box around both that neither covers (Rezatofighi et al. 2019).

    Args:
        first_xyxy: (..., 4) float.
        second_xyxy: (..., 4) float, boxes with a side above 0.

    Returns:
        (...) from -1 (far apart) to 1 (equal).
    """
    around = (
        torch.minimum(first_xyxy[..., :2], second_xyxy[..., :2]),
        torch.maximum(first_xyxy[..., 2:], second_xyxy[..., 2:]),
    )
    shared = box_areas(intersection(first_xyxy, second_xyxy))
    union = box_areas(first_xyxy) + box_areas(second_xyxy) - shared
    whole = box_areas(torch.cat(around, -1))
    return shared / union - (whole - union) / whole


def clip_boxes(boxes_xyxy: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes to their images.

    Args:
        boxes_xyxy: (B, N, 4) float.
        sizes: (B, 2) float, (height, width) of each image, in the unit of the boxes.

    Returns:
        (B, N, 4) boxes within [0, width] x [0, height].
    """
    limits = sizes.flip(-1).repeat(1, 2)[:, None, :]  # (B, 1, 4): width, height, width, height
    return torch.minimum(boxes_xyxy.clamp(min=0), limits)


def _centers_and_sides(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return boxes_xyxy[..., :2] + 0.5 * sides, sides


def encode_boxes(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Deltas that turn anchors into boxes: the inverse of `decode_deltas` (Ren et al. 2015, eq. 2).

    Args:
        boxes_xyxy: (..., 4) float.
        anchors_xyxy: (..., 4) float, one anchor a box.

    Returns:
        (..., 4) (dx, dy, dw, dh): offsets in units of the anchor's sides, and log ratios of the sides.
    """
    anchor_centers, anchor_sides = _centers_and_sides(anchors_xyxy)
    centers, sides = _centers_and_sides(boxes_xyxy)
    anchor_sides = anchor_sides + CODING_EPSILON
    offsets = (centers - anchor_centers) / anchor_sides
    return torch.cat([offsets, torch.log((sides + CODING_EPSILON) / anchor_sides)], -1)


def decode_deltas(deltas: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Boxes from the deltas that the box head predicts (Faster R-CNN coding, Ren et al. 2015, eq. 2).

    Args:
        deltas: (..., A, 4) float, (dx, dy, dw, dh): offsets in units of the anchor's sides, log ratios. The log ratios
            are clamped from above at log(1000 / 16), so the result is finite.
        anchors_xyxy: (..., A, 4) float32, pixels of the network's input.

    Returns:
        (..., A, 4) float32 boxes_xyxy, pixels of the network's input, not clipped.

    Raises:
        ValueError: the two disagree on A; gives both shapes.
    """
    if deltas.shape[-2:] != anchors_xyxy.shape[-2:]:
        raise ValueError(f"deltas {tuple(deltas.shape)} and anchors {tuple(anchors_xyxy.shape)} disagree on (A, 4)")
    anchor_centers, anchor_sides = _centers_and_sides(anchors_xyxy)
    centers = deltas[..., :2] * anchor_sides + anchor_centers
    half = 0.5 * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() * anchor_sides
    return torch.cat([centers - half, centers + half], -1)
