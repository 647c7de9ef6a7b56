"""Focal loss for classes, Huber or GIoU loss for boxes (section 5.1; google/automl tf2/train_lib.py), in float32.

With task alignment (Feng et al. 2021, section 3.2) the class loss is the quality focal loss against the anchors'
alignment, which also weighs their GIoU loss.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from efficientdet.boxes import decode_deltas, generalized_iou
from efficientdet.training.assignment import IGNORED, LARGEST_DELTA, Matches, match_batch
from efficientdet.training.config import LossSettings

# Logits that a CPU works on at a time: they and what is computed from them stay in its cache.
CPU_CHUNK = 2**16
# With task alignment: exponent of the distance between score and target (Feng et al. 2021, section 4).
QUALITY_GAMMA = 2.0


class Losses(NamedTuple):
    """Scalars: total = classes + weight * boxes, with the weight of the kind of box loss."""

    total: Tensor
    classes: Tensor
    boxes: Tensor


def focal_loss(logits: Tensor, is_object: bool, alpha: float, gamma: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Focal loss of each logit against one target (Lin et al. 2017, eq. 5), stable at any logit, and its slope.

    Args:
        logits: (...) float.
        is_object: the target: object or background.
        alpha: weight of objects; background has 1 - alpha.
        gamma: exponent of the discount (1 - p_t).
        smoothing: label smoothing of the cross-entropy.

    Returns:
        (...) losses, not summed, and (...) their derivatives by the logits.
    """
    # The loss of an object is that of background at the negated logit.
    z = -logits if is_object else logits
    weight, shift = (alpha if is_object else 1 - alpha), smoothing / 2
    entropy = functional.softplus(z, threshold=50)
    log_miss = z - entropy  # log of 1 - p_t
    miss = log_miss.exp()
    discount = log_miss.mul_(gamma).exp_().mul_(weight)
    if shift:
        entropy = entropy - shift * z
        miss_and_shift = miss - shift
    else:
        miss_and_shift = miss
    slope = torch.addcmul(entropy, entropy, miss, value=-1).mul_(gamma).add_(miss_and_shift).mul_(discount)
    return entropy.mul_(discount), slope.neg_() if is_object else slope


def quality_focal_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy against soft targets, times the squared distance from them (Feng et al. 2021, section 3.2).

    Args:
        logits: (...) float.
        targets: (...) float, from 0 to 1; at 0 the loss is the focal loss of background with gamma 2 and alpha 0.

    Returns:
        (...) losses, not summed, and (...) their derivatives by the logits.
    """
    scores = logits.sigmoid()
    entropy = functional.softplus(logits, threshold=50) - targets * logits
    distance = scores - targets
    return distance**2 * entropy, distance * (2 * scores * (1 - scores) * entropy + distance**2)


class FocalSum(torch.autograd.Function):
    """Sum of the focal losses of every anchor and class, computed in float32 together with its gradient.

    Autograd would keep half a dozen tensors of the logits' size until the backward pass; this keeps only the gradient,
    and on a CPU works through the logits in chunks that stay in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, targets: Matches, alpha: float, gamma: float, smoothing: float, *class_logits: Tensor
    ) -> Tensor:
        """Sum of the losses; those of objects are quality focal losses if the targets have an alignment.

        Args:
            ctx: torch's.
            targets: of the batch.
            alpha: see `focal_loss`.
            gamma: the same.
            smoothing: the same.
            class_logits: see `detection_loss`.
        """
        shape = (alpha, gamma, smoothing)
        has_ignored = bool((targets.labels == IGNORED).any())
        sums, gradients = [], []
        counts = [x.shape[1] for x in class_logits]
        aligned = torch.ones_like(targets.labels) if targets.alignment is None else targets.alignment
        by_level = zip(
            class_logits, torch.split(targets.labels, counts, 1), torch.split(aligned, counts, 1), strict=True
        )
        for logits, labels_here, alignment in by_level:
            # Small gradients would vanish in float16 before the gradient scaler multiplies them.
            kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
            gradient = torch.empty(logits.shape, dtype=kept, device=logits.device)
            size = CPU_CHUNK if logits.device.type == "cpu" else logits.numel()
            chunks = (torch.split(x.reshape(-1), size) for x in (logits, gradient))
            for chunk, out in zip(*chunks, strict=True):
                losses, slopes = focal_loss(_at_least_float32(chunk), False, *shape)
                sums.append(losses.sum())
                out.copy_(slopes)
            # All were treated as background, as nearly all are; the few objects are corrected here.
            is_object, labels_or_0 = (labels_here >= 0)[..., None], labels_here.clamp(min=0)[..., None]
            values = _at_least_float32(logits.gather(2, labels_or_0))  # (B, A_l, 1)
            of_object, of_background = (focal_loss(values, target, *shape) for target in (True, False))
            if targets.alignment is not None:
                of_object = quality_focal_loss(values, alignment[..., None].to(values.dtype))
            sums.append(((of_object[0] - of_background[0]) * is_object).sum())
            gradient.scatter_(2, labels_or_0, torch.where(is_object, of_object[1], of_background[1]).to(kept))
            if has_ignored:
                left_out = labels_here == IGNORED
                sums.append(-focal_loss(_at_least_float32(logits[left_out]), False, *shape)[0].sum())
                gradient[left_out] = 0
            gradients.append(gradient)
        ctx.gradients, ctx.dtypes = gradients, [x.dtype for x in class_logits]
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the gradient that `forward` computed, in place; so it can be had once."""
        if ctx.gradients is None:
            raise RuntimeError("the focal loss has no gradient left after one backward pass; compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        parts = [gradient.mul_(factor).to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return None, None, None, None, *parts


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def detection_loss(
    class_logits: list[Tensor],
    box_deltas: list[Tensor],
    anchors_xyxy: Tensor,
    boxes_xyxy: list[Tensor],
    labels: list[Tensor],
    settings: LossSettings | None = None,
    ignored_xyxy: list[Tensor] | None = None,
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
        settings: weights and shapes; the reference's when None.
        ignored_xyxy: B tensors (M_i, 4) float32 in the same pixels: regions whose anchors train no class.

    Returns:
        Three scalars, float32 (float64 if the logits are).
    """
    return matched_loss(class_logits, box_deltas, match_batch(anchors_xyxy, boxes_xyxy, labels, ignored_xyxy), settings)


def matched_loss(
    class_logits: list[Tensor], box_deltas: list[Tensor], targets: Matches, settings: LossSettings | None = None,
    giou_anchors_xyxy: Tensor | None = None, normalizer: Tensor | None = None,
) -> Losses:  # fmt: skip
    """`detection_loss` for targets that `match_batch` found.

    Args:
        class_logits: see `detection_loss`.
        box_deltas: the same.
        targets: what each anchor is to predict.
        settings: the same.
        giou_anchors_xyxy: the anchors, for the GIoU box loss instead of the Huber loss.
        normalizer: what the sums are divided by, where several devices share one; by default the targets' own.
    """
    settings = settings or LossSettings()
    with torch.autocast(class_logits[0].device.type, enabled=False):
        deltas = torch.cat(box_deltas, 1)
        deltas = deltas.double() if class_logits[0].dtype == torch.float64 else deltas.float()
        target_deltas = targets.deltas.to(deltas.dtype)
        normalizer = targets.normalizer() if normalizer is None else normalizer
        shape = (settings.alpha, settings.gamma, settings.label_smoothing)
        if targets.alignment is not None:
            shape = (0.0, QUALITY_GAMMA, 0.0)
        focal: Tensor = FocalSum.apply(targets, *shape, *class_logits)  # type: ignore[no-untyped-call]
        classes = focal / normalizer

        if giou_anchors_xyxy is not None:
            boxes = giou_sum(deltas, targets, giou_anchors_xyxy) / normalizer
            return Losses(classes + settings.giou_weight * boxes, classes, boxes)
        counted = target_deltas != 0 if settings.skips_zero_targets else (targets.labels >= 0)[..., None]
        huber = functional.huber_loss(deltas, target_deltas, reduction="none", delta=settings.delta)
        boxes = (huber * counted).sum() / (4.0 * normalizer)
        return Losses(classes + settings.box_weight * boxes, classes, boxes)


def giou_sum(deltas: Tensor, targets: Matches, anchors_xyxy: Tensor) -> Tensor:
    """Sum of 1 - GIoU of the predicted and the annotated box over the anchors with a box (Rezatofighi et al. 2019).

    The anchors' alignment, if the targets have one, weighs it.

    Args:
        deltas: (B, A, 4) float.
        targets: of the batch.
        anchors_xyxy: (A, 4) float32, pixels of the network's input.

    Returns:
        A scalar.
    """
    image, anchor = (targets.labels >= 0).nonzero(as_tuple=True)
    anchors = anchors_xyxy[anchor].to(deltas.dtype)
    # Boxes beyond overlap with none in any case.
    predicted = decode_deltas(deltas[image, anchor].clamp(min=-LARGEST_DELTA, max=LARGEST_DELTA), anchors)
    annotated = decode_deltas(targets.deltas[image, anchor].to(deltas.dtype), anchors)
    losses = 1 - generalized_iou(predicted, annotated)
    return (losses if targets.alignment is None else losses * targets.alignment[image, anchor]).sum()
