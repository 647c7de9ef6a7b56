"""Top-k, decode, suppress, clip, map back: raw head outputs to boxes. One batched path, without a loop over boxes.

Suppression of both kinds runs in rounds. A candidate that no better one of its class overlaps is final; all such are
settled at once, and what overlaps them decays (Gaussian soft-NMS) or dies (hard NMS). Because a score only ever falls,
this gives exactly what the textbook's loop over boxes gives, in as many rounds as the longest chain of overlaps.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efficientdet.boxes import aligned_iou, clip_boxes, decode_deltas
from efficientdet.errors import SettingError, unknown_name
from efficientdet.inference.candidates import CANDIDATE_KINDS, select_candidates
from efficientdet.inference.nms import MATRIX_CANDIDATES, fuse_boxes, matrix_scores
from efficientdet.inference.single_core import on_one_core

NMS_KINDS = ("hard", "soft", "matrix", "wbf")
# Candidates that are suppressed among themselves at a time.
BLOCK = 192
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


class Overlaps(NamedTuple):
    """Pairs of boxes of one class and picture that touch, so that one may decay the other; (P,) each.

    Attributes:
        first: int64, row * M + place of one box.
        second: int64, row * N + place of the other.
        decay: float32, below 0: what either adds to the other's log score.
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
    decay = -iou.square() / settings.sigma if settings.nms == "soft" else torch.full_like(iou, DEATH)
    return Overlaps(first[touches], second[touches], decay)


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
        first, second, decay = _overlaps(block, block_labels, boxes, labels, settings)
        acts = settled.flatten()[first]
        log_factors = torch.zeros_like(scores).flatten().index_add_(0, second[acts], decay[acts])
        scores = scores * log_factors.exp().view(scores.shape)
        scores = scores.masked_fill((final > 0) | (scores < settings.score_threshold), 0.0)


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings) -> tuple[Tensor, Tensor]:
    """The best final scores and their places, by whichever way the settings name."""
    if settings.nms != "matrix":
        return _suppress_best(boxes, scores, labels, settings)
    size = min(scores.shape[1], max(MATRIX_CANDIDATES, settings.max_detections))
    final = matrix_scores(boxes[:, :size], scores[:, :size], labels[:, :size], settings.sigma)
    return final.topk(min(settings.max_detections, size), 1)


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
    with on_one_core() if class_logits[0].device.type == "cpu" else nullcontext():
        return _postprocess(class_logits, box_deltas, anchors_xyxy, settings, scales, image_sizes)


def _postprocess(
    class_logits: list[Tensor], box_deltas: list[Tensor], anchors_xyxy: Tensor, settings: PostprocessSettings,
    scales: Tensor | None, image_sizes: Tensor | None,
) -> BatchDetections:  # fmt: skip
    deltas = torch.cat(box_deltas, 1).float() if len(box_deltas) > 1 else box_deltas[0].float()
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
