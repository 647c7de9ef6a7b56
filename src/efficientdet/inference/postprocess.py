"""Top-k, decode, suppress, clip, map back: raw head outputs to boxes. One batched path, without a loop over boxes.

Suppression of both kinds runs in rounds. A candidate that no better one of its class overlaps is final; all such are
settled at once, and what overlaps them decays (Gaussian soft-NMS) or dies (hard NMS). Because a score only ever falls,
this gives exactly what the textbook's loop over boxes gives, in as many rounds as the longest chain of overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.boxes import clip_boxes, decode_deltas, pairwise_iou
from efficientdet.errors import SettingError, unknown_name
from efficientdet.inference.alternatives import MATRIX_CANDIDATES, fuse_boxes, matrix_scores
from efficientdet.inference.candidates import CANDIDATE_KINDS, select_candidates

NMS_KINDS = ("hard", "soft", "matrix", "wbf")
# Candidates that are suppressed among themselves at a time: of so few torch computes all pairs on one core.
BLOCK = 181
# exp of this is 0 in float32: hard NMS written as a decay.
DEATH = -1e4


@dataclass(frozen=True)
class PostprocessSettings:
    """How raw outputs become detections.

    Attributes:
        score_threshold: detections below this score are dropped.
        iou_threshold: hard NMS drops a box whose IoU with a better one of its class is above this.
        max_detections: at most so many a picture.
        nms: `hard`; `soft` (Gaussian, Bodla et al. 2017); `matrix` (Wang et al. 2020); or `wbf`, hard NMS whose boxes
            move to the mean of what they suppress (Solovyev et al. 2021).
        sigma: width of the decay exp(-iou**2 / sigma) of `soft` and `matrix`.
        max_candidates: (anchor, class) pairs with the best logits that suppression may look at.
        candidates: `pairs` lets an anchor stand for several classes; `argmax` for its best class alone.
    """

    score_threshold: float = 0.001
    iou_threshold: float = 0.5
    max_detections: int = 100
    nms: str = "hard"
    sigma: float = 0.5
    max_candidates: int = 5000
    candidates: str = "pairs"

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            UnknownNameError: nms or candidates is not known.
            SettingError: a number is out of range; names it.
        """
        if self.nms not in NMS_KINDS:
            raise unknown_name("nms", self.nms, NMS_KINDS)
        if self.candidates not in CANDIDATE_KINDS:
            raise unknown_name("candidates", self.candidates, CANDIDATE_KINDS)
        for name in ("score_threshold", "iou_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        for name in ("max_detections", "max_candidates"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.sigma > 0:
            raise SettingError(f"sigma is {self.sigma}; it must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; the constructor takes them back as keywords."""
        return dict(vars(self))


class BatchDetections(NamedTuple):
    """Detections of a batch, best first; places beyond `counts` hold zeros.

    Attributes:
        boxes_xyxy: (B, D, 4) float32, original pixels.
        scores: (B, D) float32.
        labels: (B, D) int64.
        counts: (B,) int64.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor


def _log_decay(
    boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, settings: PostprocessSettings
) -> Tensor:
    """(B, M, N): what each chosen one of M boxes adds to the log score of N others; 0 where they do not touch."""
    iou = pairwise_iou(boxes, others)
    if settings.nms == "soft":
        decay = -iou.square() / settings.sigma
    else:
        decay = torch.where(iou > settings.iou_threshold, DEATH, 0.0)
    return decay.masked_fill(labels[:, :, None] != other_labels[:, None, :], 0.0)


def suppress(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings) -> Tensor:
    """Scores after suppression within each class.

    Args:
        boxes_xyxy: (B, M, 4) float32.
        scores: (B, M) float32, best first; 0 marks an empty place.
        labels: (B, M) int64.
        settings: kind and its parameters.

    Returns:
        (B, M) float32: unchanged or decayed scores; 0 for what hard NMS drops.
    """
    decay = _log_decay(boxes_xyxy, labels, boxes_xyxy, labels, settings)
    order = torch.arange(boxes_xyxy.shape[1], device=boxes_xyxy.device)
    decay = decay.masked_fill(order[:, None] == order[None, :], 0.0)
    touches = decay < 0
    earlier = order[:, None] < order[None, :]  # (M, M): the row comes first where scores are equal
    scores = scores.clone()
    undecided = scores > 0
    while bool(undecided.any()):
        before = scores[:, :, None] > scores[:, None, :]
        before |= (scores[:, :, None] == scores[:, None, :]) & earlier
        waits = (touches & before & undecided[:, :, None]).any(1)
        final = undecided & ~waits
        undecided = undecided & waits
        total = torch.einsum("bi,bij->bj", final.to(decay.dtype), decay)
        scores = torch.where(undecided, scores * total.exp(), scores)
        undecided = undecided & (scores > 0)
    return scores


def _suppress_best(
    boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings
) -> tuple[Tensor, Tensor]:
    """The best final scores and their places, (B, D) each, looking at no more candidates than the answer needs.

    Blocks of the best undecided candidates are suppressed among themselves. A final score in a block that is no lower
    than every score beyond it cannot change any more, since scores only fall: it is settled, and everything else
    decays by it. So memory stays at a block by all candidates, and most pictures need one block.
    """
    total = scores.shape[1]
    wanted = min(settings.max_detections, total)
    size = min(max(BLOCK, 3 * wanted // 2), total)
    final = torch.zeros_like(scores)
    while True:
        top, places = scores.topk(min(size + 1, total), 1)
        beyond = top[:, size:].sum(1, keepdim=True)  # (B, 1): the best score outside the block, or 0
        top, places = top[:, :size], places[:, :size]
        block, block_labels = _pick(boxes, places), labels.gather(1, places)
        finals = suppress(block, top, block_labels, settings)
        settled = (finals > 0) & (finals >= beyond)
        final.scatter_add_(1, places, finals * settled)
        if not bool(((final > 0).sum(1, keepdim=True) < wanted).logical_and(beyond > 0).any()):
            best, order = final.sort(dim=1, descending=True, stable=True)
            return best[:, :wanted], order[:, :wanted]
        decay = _log_decay(block, block_labels, boxes, labels, settings)
        decay = torch.einsum("bi,bij->bj", settled.to(decay.dtype), decay).exp()
        scores = scores * decay
        scores = scores.masked_fill((final > 0) | (scores < settings.score_threshold), 0.0)


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings) -> tuple[Tensor, Tensor]:
    """The best final scores and their places, by whichever way the settings name."""
    if settings.nms != "matrix":
        return _suppress_best(boxes, scores, labels, settings)
    size = min(scores.shape[1], max(MATRIX_CANDIDATES, settings.max_detections))
    final = matrix_scores(boxes[:, :size], scores[:, :size], labels[:, :size], settings.sigma)
    return final.topk(min(settings.max_detections, size), 1)


def _joined(levels: Sequence[Tensor]) -> Tensor:
    """(B, A_l, 4) by level to (B, A, 4); on a CPU by numpy, on one core: see `candidates`."""
    if len(levels) == 1:
        return levels[0]
    if levels[0].device.type != "cpu":
        return torch.cat(list(levels), 1)
    return torch.from_numpy(np.concatenate([level.detach().numpy() for level in levels], 1))


def _pick(boxes: Tensor, places: Tensor) -> Tensor:
    """(B, N, 4) and (B, M) places to (B, M, 4)."""
    return boxes.gather(1, places[..., None].expand(-1, -1, 4))


def postprocess(
    class_logits: list[Tensor],
    box_deltas: list[Tensor],
    anchors_xyxy: Tensor,
    settings: PostprocessSettings | None = None,
    *,
    scales: Tensor | None = None,
    image_sizes: Tensor | None = None,
) -> BatchDetections:
    """Detections of a batch from the network's raw outputs.

    Args:
        class_logits: list over levels of (B, A_l, K).
        box_deltas: list over levels of (B, A_l, 4), (dx, dy, dw, dh).
        anchors_xyxy: (A, 4) float32, pixels of the network's input.
        settings: thresholds and kinds.
        scales: (B,) network pixels per original pixel; None for 1.
        image_sizes: (B, 2) (height, width) of the original pictures. Boxes are clipped to the picture before
            suppression. None: not clipped.

    Returns:
        The detections, boxes in original pixels. Where network outputs are not finite there is no detection.
    """
    settings = settings or PostprocessSettings()
    deltas = _joined([level.float() for level in box_deltas])
    found = select_candidates(class_logits, settings.max_candidates, settings.score_threshold, settings.candidates)
    batch, count = found.logits.shape
    rows = found.anchor_indices
    boxes = decode_deltas(_pick(deltas, rows), anchors_xyxy[rows])  # (B, N, 4)
    usable = boxes.isfinite().all(-1)  # (B, N)
    boxes = boxes.masked_fill(~usable[..., None], 0.0)
    factors = scales.float() if scales is not None else boxes.new_ones(batch)
    if image_sizes is not None:
        boxes = clip_boxes(boxes, image_sizes * factors[:, None])
    scores = found.logits.sigmoid() * usable
    if count == 0:
        empty = boxes.new_zeros(batch, 0)
        return BatchDetections(boxes, empty, found.labels, found.labels.new_zeros(batch))
    with torch.autocast(boxes.device.type, enabled=False):  # its half-precision products would round the decays
        best, order = _best(boxes, scores, found.labels, settings)
        keep = (best > 0) & (best >= settings.score_threshold)
        labels, kept = found.labels.gather(1, order), _pick(boxes, order)
        if settings.nms == "wbf":
            owners = labels.masked_fill(~keep, -1)  # places that hold no detection own nothing
            kept = fuse_boxes(kept, owners, boxes, scores, found.labels, settings.iou_threshold)
    boxes = kept / factors[:, None, None]
    if image_sizes is not None:  # the way back may round a border outwards
        boxes = clip_boxes(boxes, image_sizes.float())
    return BatchDetections(boxes * keep[..., None], best * keep, labels * keep, keep.sum(1))
