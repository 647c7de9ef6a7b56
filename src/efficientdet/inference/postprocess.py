"""From raw outputs to boxes: choose candidates, decode, suppress, clip, map back to the original image.

On a CPU numpy finds the candidates: on one core it compares several times as fast as torch, at the speed of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.boxes import clip_boxes, decode_deltas
from efficientdet.images.letterbox import Prepared
from efficientdet.inference.engines.session import Found
from efficientdet.inference.hardware import on_cores
from efficientdet.inference.nms import best_detections, fuse_boxes, pick_boxes
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.network.anchors import make_anchors
from efficientdet.weights.info import CheckpointInfo

NEVER, ALWAYS = float("-inf"), float("inf")
# Logits that are compared at a time.
CHUNK = 1 << 20
# Where the pairs over the threshold are at most this many times `max_candidates`, all of them are gathered at once.
FEW = 4


class BatchDetections(NamedTuple):
    """Detections of a batch, best first; places beyond `counts` hold zeros.

    Attributes:
        boxes_xyxy: (B, D, 4) float32, original pixels.
        scores: (B, D) float32.
        labels: (B, D) int64.
        counts: (B,) int64, how many of the D places hold a detection.
        anchor_indices: (B, D) int64, the anchor that each detection was decoded from, among those of all levels.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    anchor_indices: Tensor


# Its operations are small, and after each of them OpenMP's threads would spin for some milliseconds in case another one
# follows: between two runs of a network in OpenVINO or ONNX Runtime that takes more time than it gains.
@on_cores(1)
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
        settings: thresholds and kind of NMS; the defaults when None.
        scales: (B,) network pixels per original pixel; None for 1.
        image_sizes: (B, 2) (height, width) of the original images. Boxes are clipped to the image before
            suppression. None: not clipped.

    Returns:
        The detections, boxes in original pixels. Where network outputs are not finite there is no detection.

    Raises:
        SettingError: the settings have score thresholds for another number of classes.
    """
    settings = settings or PostprocessSettings()
    thresholds = settings.class_thresholds(class_logits[0].shape[2])
    found = select_candidates(class_logits, settings.max_candidates, settings.lowest_threshold, settings.candidates)
    if found.logits.shape[1] == 0:
        batch, rows = len(found.logits), found.anchor_indices
        none = anchors_xyxy.new_zeros(batch, 0)
        return BatchDetections(none[..., None].expand(-1, -1, 4), none, found.labels, rows.new_zeros(batch), rows)
    floors = anchors_xyxy.new_tensor(thresholds)  # (K,)
    return detections_of(found, box_deltas, anchors_xyxy, settings, floors, best_detections, scales, image_sizes)


def detections_of(
    found: Candidates,
    box_deltas: list[Tensor],
    anchors_xyxy: Tensor,
    settings: PostprocessSettings,
    floors: Tensor,
    suppress: Callable[[Tensor, Tensor, Tensor, PostprocessSettings], tuple[Tensor, Tensor]],
    scales: Tensor | None,
    image_sizes: Tensor | None,
) -> BatchDetections:
    """Candidates to detections: decode, clip, suppress, map back.

    Args:
        found: (B, N) candidates.
        box_deltas: as `postprocess`, and so are the anchors, the settings, scales and image_sizes.
        anchors_xyxy: (A, 4).
        settings: thresholds and kind of NMS.
        floors: (K,) float32, the score threshold of each class.
        suppress: as `nms.best_detections`.
        scales: (B,) or None.
        image_sizes: (B, 2) or None.
    """
    rows = found.anchor_indices
    deltas = torch.cat(box_deltas, 1).float() if len(box_deltas) > 1 else box_deltas[0].float()
    boxes = decode_deltas(pick_boxes(deltas, rows), anchors_xyxy[rows])  # (B, N, 4)
    usable = boxes.isfinite().all(-1)  # (B, N)
    boxes = boxes.masked_fill(~usable[..., None], 0.0)
    factors = scales.float() if scales is not None else boxes.new_ones(len(boxes))
    if image_sizes is not None:
        boxes = clip_boxes(boxes, image_sizes * factors[:, None])
    scores = found.logits.sigmoid()
    scores = scores * (usable & (scores >= floors[found.labels]))
    with torch.autocast(boxes.device.type, enabled=False):  # its half-precision products would round the decays
        best, order = suppress(boxes, scores, found.labels, settings)
        labels = found.labels.gather(1, order)
        best = best.masked_fill(best < floors[labels], 0.0)
        if isinstance(settings.score_threshold, tuple):  # what has decayed below its own is not always the last
            best, places = best.sort(dim=1, descending=True, stable=True)
            order, labels = order.gather(1, places), labels.gather(1, places)
        keep, kept = best > 0, pick_boxes(boxes, order)
        if settings.nms == "wbf":
            owners = labels.masked_fill(~keep, -1)  # places that hold no detection own nothing
            kept = fuse_boxes(kept, owners, boxes, scores, found.labels, settings.iou_threshold)
    boxes = kept / factors[:, None, None]
    if image_sizes is not None:  # the way back may round a border outwards
        boxes = clip_boxes(boxes, image_sizes.float())
    anchors = rows.gather(1, order) * keep
    return BatchDetections(boxes * keep[..., None], best * keep, labels * keep, keep.sum(1), anchors)


@torch.inference_mode()
def detect(
    run: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]],
    device: torch.device,
    info: CheckpointInfo,
    settings: PostprocessSettings,
    timed: Callable[[str], AbstractContextManager[Any]],
    images: Sequence[Prepared],
) -> list[Found]:
    """Boxes, scores and labels of each image, through the network and its post-processing; inputs have one size.

    Args:
        run: images to raw outputs, as `Engine.run`.
        device: where it runs.
        info: facts of the network.
        settings: of the post-processing.
        timed: entered around each part, by its name.
        images: with float32 pixels.
    """
    with timed("preprocess"):
        pixels = [image.pixels for image in images]  # of which one alone is not copied
        batch = torch.from_numpy(np.stack(pixels) if len(pixels) > 1 else pixels[0][None]).to(device)
    with timed("network"):
        class_logits, box_deltas = run(batch)
    with timed("postprocess"):
        found = postprocess(
            class_logits,
            box_deltas,
            make_anchors(info.spec, (batch.shape[2], batch.shape[3]), device),
            settings,
            scales=torch.tensor([image.scale for image in images], device=device),
            image_sizes=torch.tensor([image.image_size for image in images], device=device),
        )
        *parts, counts, _ = (part.cpu().numpy() for part in found)
        return [tuple(part[i, :count] for part in parts) for i, count in enumerate(counts)]


class Candidates(NamedTuple):
    """The candidates of each image, (anchor, class) pairs, best first.

    Attributes:
        logits: (B, N) float32; -inf marks places that hold no candidate.
        anchor_indices: (B, N) int64.
        labels: (B, N) int64.
    """

    logits: Tensor
    anchor_indices: Tensor
    labels: Tensor


def select_candidates(
    class_logits: Sequence[Tensor], max_candidates: int, score_threshold: float, kind: str = "pairs"
) -> Candidates:
    """Choose the (anchor, class) pairs with the best logits.

    On a CPU one comparison finds the pairs over the threshold, if they are few. Otherwise one pass finds the best class
    of each anchor, and only the few anchors whose best class is good enough are looked at further.

    Args:
        class_logits: list over levels of (B, A_l, K), float32 or bfloat16. Logits that are not finite are left out.
        max_candidates: largest number of pairs for an image.
        score_threshold: pairs below this probability are left out.
        kind: `pairs`, or `argmax` for each anchor's best class alone.

    Returns:
        The candidates; N is the largest count in the batch.
    """
    batch = class_logits[0].shape[0]
    threshold = torch.finfo().min  # at a score of 0 every finite logit is a candidate, at 1 none
    if score_threshold > 0:
        threshold = math.log(score_threshold / (1 - score_threshold)) if score_threshold < 1 else ALWAYS
    if kind == "pairs" and class_logits[0].device.type == "cpu":
        few = _few_pairs(class_logits, threshold, FEW * max_candidates * batch)
        if few is not None:
            return _best_first(*few, batch, max_candidates)
    class_logits = [level.float() for level in class_logits]
    best = [level.amax(2) for level in class_logits]  # (B, A_l); nan and inf where a class is
    floors = _floors(torch.cat(best, 1), max_candidates, threshold)  # (B,)
    found, first = [], 0
    for level, own in zip(class_logits, best, strict=True):
        rows, anchors = (~(own < floors[:, None])).nonzero(as_tuple=True)
        logits = level[rows, anchors]  # (n, K)
        good = (logits >= floors[rows, None]) & (logits < ALWAYS)
        if kind == "argmax":
            only = logits.where(good, NEVER).argmax(1, keepdim=True)
            good &= torch.zeros_like(good).scatter_(1, only, True)
        which, labels = good.nonzero(as_tuple=True)
        found.append((logits[which, labels], anchors[which] + first, labels, rows[which]))
        first += level.shape[1]
    values, anchors, labels, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return _best_first(Candidates(values, anchors, labels), rows, batch, max_candidates)


def _few_pairs(class_logits: Sequence[Tensor], threshold: float, most: int) -> tuple[Candidates, Tensor] | None:
    """All pairs over a threshold, (n,) each, and the index of each one's image; None if there are more than `most`.

    Ordered by level, image, anchor, class.
    """
    found: list[tuple[NDArray[Any], ...]] = []
    mask, first, count = np.empty(CHUNK, bool), 0, 0
    for level in class_logits:
        logits, compare, bound = _comparable(level, threshold)
        for start in range(0, len(logits), CHUNK):
            chunk = logits[start : start + CHUNK]
            over = compare(chunk, bound, out=mask[: len(chunk)])
            here = int(np.count_nonzero(over))
            count += here
            if count > most:
                return None
            if here:
                places = np.flatnonzero(over)
                rows, rest = np.divmod(places + start, level.shape[1] * level.shape[2])
                anchors, labels = np.divmod(rest, level.shape[2])
                found.append((_as_float(chunk[places]), anchors + first, labels, rows))
        first += level.shape[1]
    if not found:
        none = torch.zeros(0, dtype=torch.int64)
        return Candidates(torch.zeros(0), none, none), none
    values, anchors, labels, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
    finite = values < ALWAYS
    return Candidates(*(torch.from_numpy(x[finite]) for x in (values, anchors, labels))), torch.from_numpy(rows[finite])


def _comparable(level: Tensor, threshold: float) -> tuple[NDArray[Any], np.ufunc, Any]:
    """Logits as a flat numpy array, and the comparison and bound that select those over a threshold.

    numpy has no bfloat16, so its bits are compared as integers, which have the same order among numbers of one sign. A
    logit is at or over a negative threshold if its bits, unsigned, are at most the threshold's: those of positive
    numbers are lower still.
    """
    flat = level.detach().contiguous().view(-1)
    if flat.dtype != torch.bfloat16:
        return flat.float().numpy(), np.greater_equal, np.float32(threshold)
    bits = flat.view(torch.int16).numpy()
    if threshold <= 0:
        # The lowest bfloat16 that is not below the threshold: the upper half of its bits. -0 stands for 0.
        return bits.view(np.uint16), np.less_equal, np.uint16(_bits(-abs(threshold)) >> 16)
    return bits, np.greater_equal, np.int16(-(-_bits(threshold) // 2**16))


def _bits(number: float) -> int:
    """Of a number as float32."""
    return int(np.float32(number).view(np.uint32))


def _as_float(logits: NDArray[Any]) -> NDArray[np.float32]:
    """The float32 values of logits that `_comparable` gave as integers."""
    if logits.dtype == np.float32:
        return logits
    return np.asarray((logits.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32))


def _floors(best: Tensor, max_candidates: int, threshold: float) -> Tensor:
    """(B, A) best logits to (B,): the smallest logit that can be among the `max_candidates` best of an image."""
    floors = best.new_full((best.shape[0],), threshold)
    if best.shape[1] <= max_candidates or int((best >= threshold).sum(1).max()) <= max_candidates:
        return floors
    finite = best.nan_to_num(nan=NEVER, posinf=NEVER, neginf=NEVER)
    return torch.maximum(floors, finite.topk(max_candidates, 1, sorted=False).values.amin(1))


def _best_first(pairs: Candidates, rows: Tensor, batch: int, most: int) -> Candidates:
    """Pairs of all images, (n,) each with the index of its image, to (B, N): best first, at most `most` an image."""
    if not len(rows):
        return Candidates(*(part.new_zeros(batch, 0) for part in pairs))
    if batch == 1:
        numbers = torch.arange(len(rows), device=rows.device)[None]  # (B, N) of pairs
        logits = pairs.logits[None]
    else:
        order = rows.argsort(stable=True)
        counts, rows = rows.bincount(minlength=batch), rows[order]
        places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        numbers = rows.new_full((batch, int(counts.max())), -1)
        numbers[rows, places] = order
        logits = pairs.logits[numbers].masked_fill(numbers < 0, NEVER)
    if logits.shape[1] > most:
        kept = logits.topk(most, 1, sorted=False).indices.sort(1).values
        logits, numbers = logits.gather(1, kept), numbers.gather(1, kept)
    # Stable: among equal logits the finer level, then the earlier anchor, comes first.
    logits, order = logits.sort(dim=1, descending=True, stable=True)
    numbers = numbers.gather(1, order)
    return Candidates(logits, pairs.anchor_indices[numbers], pairs.labels[numbers])
