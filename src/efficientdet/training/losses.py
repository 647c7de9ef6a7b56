"""Focal loss for the classes, Huber loss for the boxes (section 5.1; google/automl tf2/train_lib.py). In float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from efficientdet.training.matching import BACKGROUND, match_anchors


@dataclass(frozen=True)
class LossSettings:
    """Weights and shapes of the losses; the defaults are the reference's.

    Attributes:
        alpha: weight of positives in the focal loss; negatives have 1 - alpha.
        gamma: how strongly well-classified anchors are discounted.
        label_smoothing: moves the class targets towards 0.5.
        delta: where the Huber loss turns from square to line.
        box_weight: weight of the box loss in the total.
        skips_zero_targets: leave elements out of the box loss whose target is exactly 0, as the reference does.
    """

    alpha: float = 0.25
    gamma: float = 1.5
    label_smoothing: float = 0.0
    delta: float = 0.1
    box_weight: float = 50.0
    skips_zero_targets: bool = True


class Losses(NamedTuple):
    """Scalars: total = classes + box_weight * boxes."""

    total: Tensor
    classes: Tensor
    boxes: Tensor


def focal_loss(logits: Tensor, is_object: bool, alpha: float, gamma: float, smoothing: float) -> Tensor:
    """Focal loss of each logit against one target (Lin et al. 2017, eq. 5), stable at any logit.

    Args:
        logits: (...) float.
        is_object: the target: object or background.
        alpha: weight of objects; background has 1 - alpha.
        gamma: exponent of the discount (1 - p_t).
        smoothing: label smoothing of the cross-entropy.

    Returns:
        (...) losses, not summed.
    """
    target = (1.0 if is_object else 0.0) * (1 - smoothing) + 0.5 * smoothing
    cross_entropy = functional.softplus(logits, threshold=50) - (target * logits if target else 0.0)
    miss = (-logits if is_object else logits).sigmoid()  # 1 - p_t
    return (alpha if is_object else 1 - alpha) * miss.pow(gamma) * cross_entropy


def detection_loss(
    class_logits: list[Tensor],
    box_deltas: list[Tensor],
    anchors_xyxy: Tensor,
    boxes_xyxy: list[Tensor],
    labels: list[Tensor],
    settings: LossSettings | None = None,
) -> Losses:
    """Loss of a batch.

    Both parts are sums over anchors; the class loss is divided by (positives + 1), the box loss by four times that.
    Under autocast everything is computed in float32.

    Args:
        class_logits: list over levels of (B, A_l, K), any float.
        box_deltas: list over levels of (B, A_l, 4), (dx, dy, dw, dh).
        anchors_xyxy: (A, 4) float32, pixels of the network's input; A is the sum of A_l.
        boxes_xyxy: B tensors (N_i, 4) float32 in the same pixels; N_i may be 0.
        labels: B tensors (N_i,) int64, 0-based.
        settings: weights; the reference's when None.

    Returns:
        The three scalars, float32 (float64 if the logits are).
    """
    settings = settings or LossSettings()
    with torch.autocast(class_logits[0].device.type, enabled=False):
        logits = torch.cat(class_logits, 1)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        deltas = torch.cat(box_deltas, 1).to(logits.dtype)
        with torch.no_grad():
            matches = [match_anchors(anchors_xyxy, b, c) for b, c in zip(boxes_xyxy, labels, strict=True)]
            target_labels = torch.stack([match.labels for match in matches])  # (B, A)
            target_deltas = torch.stack([match.deltas for match in matches]).to(deltas.dtype)
        positive = target_labels != BACKGROUND  # (B, A)
        normaliser = positive.sum() + 1.0

        # Nearly all logits are background: take all for it, then set the few right at which an object is.
        shape = (settings.alpha, settings.gamma, settings.label_smoothing)
        of_object = logits.gather(2, target_labels.clamp(min=0)[..., None])[..., 0]  # (B, A)
        correction = focal_loss(of_object, True, *shape) - focal_loss(of_object, False, *shape)
        classes = focal_loss(logits, False, *shape).sum() + (correction * positive).sum()
        classes = classes / normaliser

        counted = target_deltas != 0 if settings.skips_zero_targets else positive[..., None].expand_as(deltas)
        huber = functional.huber_loss(deltas, target_deltas, reduction="none", delta=settings.delta)
        boxes = (huber * counted).sum() / (4.0 * normaliser)
        return Losses(classes + settings.box_weight * boxes, classes, boxes)
