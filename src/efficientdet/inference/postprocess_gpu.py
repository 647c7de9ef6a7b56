"""Post-processing on an NVIDIA GPU that never waits for the CPU: two kernels choose candidates and suppress boxes.

It gives what `postprocess` gives. All shapes are known beforehand, so that a CUDA graph can hold it. The kernels are
compiled by Triton, which torch brings along on Linux, and which needs a C compiler.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientdet.inference.nms import best_detections
from efficientdet.inference.postprocess import NEVER, BatchDetections, Candidates, detections_of
from efficientdet.inference.settings import PostprocessSettings

# Candidates that an image may have, a power of two; and how many times as many pairs may be over a low threshold.
MOST_CANDIDATES = 8192
LOW_THRESHOLD, FACTOR = 0.05, 8
# Logits that a block of threads compares.
BLOCK = 4096
# Below any key of `_select`: an unused place.
UNUSED = torch.iinfo(torch.int64).min
LOWEST_BITS = 2**32 - 1


def fits_gpu(settings: PostprocessSettings) -> bool:
    """Whether these settings can be computed here: each class of an anchor a candidate, not too many of them."""
    is_bounded = settings.max_candidates <= MOST_CANDIDATES and settings.lowest_threshold > 0
    return settings.candidates == "pairs" and is_bounded


def _room(settings: PostprocessSettings) -> int:
    """Pairs over the threshold that an image may have."""
    return MOST_CANDIDATES * (1 if settings.lowest_threshold >= LOW_THRESHOLD else FACTOR)


def postprocess_gpu(
    class_logits: list[Tensor],
    box_deltas: list[Tensor],
    anchors_xyxy: Tensor,
    settings: PostprocessSettings,
    scales: Tensor,
    image_sizes: Tensor,
) -> BatchDetections:
    """As `postprocess`, but the count of an image with too many pairs over the threshold is -1.

    Args:
        class_logits: list over levels of (B, A_l, K), contiguous.
        box_deltas: list over levels of (B, A_l, 4).
        anchors_xyxy: (A, 4) float32.
        settings: such that `fits_gpu`.
        scales: (B,) network pixels per original pixel.
        image_sizes: (B, 2) float32 (height, width) of the original images.
    """
    found, counts = _candidates(class_logits, settings)
    floors = _floors(settings.class_thresholds(class_logits[0].shape[2]), anchors_xyxy.device)
    kept = detections_of(found, box_deltas, anchors_xyxy, settings, floors, _suppress, scales, image_sizes)
    return kept._replace(counts=kept.counts.masked_fill(counts > _room(settings), -1))


@functools.lru_cache(maxsize=32)
def _floors(thresholds: tuple[float, ...], device: torch.device) -> Tensor:
    """(K,) float32; made before a graph is captured, which cannot hold a copy from the CPU."""
    with torch.inference_mode(False):
        return torch.tensor(thresholds, device=device)


def _candidates(class_logits: list[Tensor], settings: PostprocessSettings) -> tuple[Candidates, Tensor]:
    """The best pairs over the threshold, best first, and how many pairs of each image are over it."""
    batch, _, classes = class_logits[0].shape
    score, room = settings.lowest_threshold, _room(settings)
    threshold = math.log(score / (1 - score)) if score < 1 else math.inf
    keys = class_logits[0].new_full((batch, room), UNUSED, dtype=torch.int64)
    counts = keys.new_zeros(batch, dtype=torch.int32)
    first = 0
    for level in class_logits:
        pairs = level.shape[1] * classes
        grid = (triton.cdiv(pairs, BLOCK), batch)
        _select[grid](level.contiguous(), keys, counts, pairs, first, threshold, room, BLOCK)
        first += pairs
    best = keys.sort(dim=1, descending=True).values[:, : settings.max_candidates]
    bits = (best >> 32).int()
    logits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    places = LOWEST_BITS - (best & LOWEST_BITS)
    is_used = best != UNUSED
    places = places * is_used
    return Candidates(logits.where(is_used, NEVER), places // classes, places % classes), counts


def _suppress(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings
) -> tuple[Tensor, Tensor]:
    """As `nms.best_detections`."""
    if settings.nms == "matrix":
        return best_detections(boxes_xyxy, scores, labels, settings)
    batch, count = scores.shape
    wanted = min(settings.max_detections, count)
    best, order = scores.new_zeros(batch, wanted), labels.new_zeros(batch, wanted)
    _nms[(batch,)](
        boxes_xyxy.contiguous(), scores.contiguous(), labels.contiguous(), best, order, count, wanted,
        settings.iou_threshold, settings.sigma, settings.lowest_threshold, settings.nms == "soft",
        triton.next_power_of_2(count), num_warps=32 if count > 2048 else 8,
    )  # fmt: skip
    return best, order


# Triton reads the annotations of a kernel: only those of constants are for it.
@triton.jit  # type: ignore[untyped-decorator]
def _select(logits, keys, counts, pairs, first, threshold, MOST: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Note the pairs of one level over a threshold, each as a number that sorts by logit, then by place."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = place < pairs
    # The sum makes 0 of -0, which equals it.
    logit = tl.load(logits + image * pairs + place, mask=inside, other=0.0).to(tl.float32) + 0.0
    good = inside & (logit >= threshold) & (logit < float("inf"))
    number = tl.sum(good.to(tl.int32), 0)
    if number > 0:
        slot = tl.atomic_add(counts + image, number) + tl.cumsum(good.to(tl.int32), 0) - 1
        bits = logit.to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        low = 0xFFFFFFFF - (place + first).to(tl.int64)
        key = (bits.to(tl.int64) << 32) | low
        tl.store(keys + image * MOST + slot, key, mask=good & (slot < MOST))


@triton.jit  # type: ignore[untyped-decorator]
def _nms(  # type: ignore[no-untyped-def]
    boxes, scores, labels, best, order, count, wanted, iou_threshold, sigma, floor,
    IS_SOFT: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One image: take the best box, drop or decay those of its class that it overlaps, and so on."""
    image = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    inside = place < count
    corners = boxes + (image * count + place) * 4
    left = tl.load(corners, mask=inside, other=0.0)
    top = tl.load(corners + 1, mask=inside, other=0.0)
    right = tl.load(corners + 2, mask=inside, other=0.0)
    bottom = tl.load(corners + 3, mask=inside, other=0.0)
    label = tl.load(labels + image * count + place, mask=inside, other=-1)
    score = tl.load(scores + image * count + place, mask=inside, other=0.0)
    area = tl.maximum(right - left, 0.0) * tl.maximum(bottom - top, 0.0)
    done = 0
    highest = tl.max(score, 0)
    while (done < wanted) & (highest > 0.0) & (highest >= floor):
        chosen = tl.argmax(score, 0, tie_break_left=True)
        tl.store(best + image * wanted + done, highest)
        tl.store(order + image * wanted + done, chosen.to(tl.int64))
        own = boxes + (image * count + chosen) * 4
        own_left, own_top = tl.load(own), tl.load(own + 1)
        own_right, own_bottom = tl.load(own + 2), tl.load(own + 3)
        width = tl.maximum(tl.minimum(right, own_right) - tl.maximum(left, own_left), 0.0)
        height = tl.maximum(tl.minimum(bottom, own_bottom) - tl.maximum(top, own_top), 0.0)
        shared = width * height
        union = area + tl.maximum(own_right - own_left, 0.0) * tl.maximum(own_bottom - own_top, 0.0) - shared
        iou = tl.where(union > 0.0, tl.div_rn(shared, tl.maximum(union, 1.1754943508222875e-38)), 0.0)
        iou = tl.where(label == tl.load(labels + image * count + chosen), iou, 0.0)
        if IS_SOFT:
            score = score * tl.exp(-iou * iou / sigma)
        else:
            score = tl.where(iou > iou_threshold, 0.0, score)
        score = tl.where(place == chosen, 0.0, score)
        highest = tl.max(score, 0)
        done += 1
