"""How well the anchors fit a dataset's boxes at an image size, and which settings would fit them better."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.quality.findings import Finding
from efficientdet.data.records import Records
from efficientdet.family import ModelSpec, aspect_factors, level_sizes
from efficientdet.images.letterbox import letterbox_scale
from efficientdet.network.anchors import level_anchors

MATCHING_IOU = 0.5
# Bounds between sizes of boxes: the square root of their area, in pixels of the network's input.
SIZE_BOUNDS = (8, 16, 32, 64, 128, 256)
# Recall of the anchors below which settings are suggested.
LOW_RECALL = 0.9
# Boxes that are looked at, taken evenly from all.
MOST_BOXES = 20_000
# Anchor scales that are tried.
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
# A setting that reaches the best recall but for this is preferred if it changes less.
CLOSE_RECALL = 0.01
SIZE_STEP = 64
# Between aspect ratios where boxes have fewer than asked for.
ASPECT_STEP = 1.5


@dataclasses.dataclass(frozen=True)
class SizeRow:
    """Boxes of one size.

    Attributes:
        low: smallest square root of their area, in pixels of the network's input.
        high: the bound above; None for the last.
        boxes: how many there are.
        recall: share of those whose best anchor has an IoU of at least 0.5.
        mean_iou: mean of the IoU with the best anchor.
    """

    low: float
    high: float | None
    boxes: int
    recall: float
    mean_iou: float


@dataclasses.dataclass(frozen=True)
class AnchorFit:
    """How well anchors fit the boxes of a dataset.

    Attributes:
        image_size: side of the square input in pixels.
        anchor_scale: as in `ModelSpec`.
        aspects: width over height of the anchor shapes.
        recall: share of the boxes whose best anchor has an IoU of at least 0.5.
        mean_iou: mean of the IoU with the best anchor.
    """

    image_size: int
    anchor_scale: float
    aspects: tuple[float, ...]
    recall: float
    mean_iou: float


@dataclasses.dataclass(frozen=True)
class AnchorReport:
    """The fit of a model's anchors, by size of the boxes, and settings that fit better.

    Attributes:
        fit: at the chosen settings.
        sizes: rows by size of the boxes.
        boxes: how many boxes there are.
        below_smallest: how many are smaller than the smallest anchor.
        vanishing: how many are less than a pixel wide or high.
        smallest_anchor: its side, in pixels of the network's input.
        suggestions: other settings, the one that changes least first; empty where recall is not low.
    """

    fit: AnchorFit
    sizes: list[SizeRow]
    boxes: int
    below_smallest: int
    vanishing: int
    smallest_anchor: float
    suggestions: list[AnchorFit]


def boxes_at(records: Records, image_size: int) -> NDArray[np.float64]:
    """(N, 4) the boxes of a split, ignored regions aside, letterboxed: in pixels of the network's square input."""
    table = records.table
    sizes, size_of_image = np.unique(table.sizes, axis=0, return_inverse=True)
    input_size = (image_size, image_size)
    scales = np.array([letterbox_scale((height, width), input_size)[0] for height, width in sizes.tolist()])
    scale_of_box = scales[size_of_image.reshape(-1)][table.image_of_box]
    boxes: NDArray[np.float64] = table.boxes_xyxy.astype(np.float64) * scale_of_box[:, None]
    return boxes[~table.is_ignored]


def best_anchor_iou(boxes_xyxy: NDArray[np.float64], spec: ModelSpec, image_size: int) -> NDArray[np.float64]:
    """The largest IoU that each box has with any anchor.

    Of the anchors of one shape on one level, the one with the nearest center has it, on each axis by itself: so one
    anchor of each shape is looked at instead of all.

    Args:
        boxes_xyxy: (N, 4) float64, pixels of the network's input.
        spec: gives levels, scale, octaves and aspects.
        image_size: side of the square input in pixels.

    Returns:
        (N,) float64, 0 to 1; the same as the maximum over `network.anchors.make_anchors`.
    """
    best = np.zeros(len(boxes_xyxy))
    centers, areas = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
    for cells, _ in level_sizes((image_size, image_size), spec.levels):
        stride = image_size / cells
        place = (np.clip(np.floor(centers / stride), 0, cells - 1) + 0.5) * stride
        for left, top, right, bottom in level_anchors(spec, (1, 1), (stride, stride)).tolist():
            sides = np.array([right - left, bottom - top])
            low = np.maximum(boxes_xyxy[:, :2], place - sides / 2)
            high = np.minimum(boxes_xyxy[:, 2:], place + sides / 2)
            shared = np.clip(high - low, 0, None).prod(1)
            np.maximum(best, shared / (areas + sides.prod() - shared), out=best)
    return best


def check_anchors(splits: Iterable[Records], spec: ModelSpec, image_size: int) -> AnchorReport | None:
    """Recall of a model's anchors on all boxes, and better settings where it is low; None without a box."""
    whole = np.concatenate([boxes_at(records, image_size) for records in splits])
    if not len(whole):
        return None
    boxes = whole[:: -(-len(whole) // MOST_BOXES)]
    best = best_anchor_iou(boxes, spec, image_size)
    fit = _fit(best, spec, image_size)
    smallest, sides = spec.anchor_scale * spec.strides[0], whole[:, 2:] - whole[:, :2]
    return AnchorReport(
        fit,
        list(_by_size(_size(boxes), best)),
        len(whole),
        int((_size(whole) < smallest).sum()),
        int((sides < 1).any(1).sum()),
        smallest,
        _suggest(boxes, spec, image_size, fit) if fit.recall < LOW_RECALL else [],
    )


def anchor_findings(report: AnchorReport) -> Iterator[Finding]:
    """Findings on the fit of the anchors."""
    size, recall = report.fit.image_size, report.fit.recall
    if report.vanishing:
        what = f"{report.vanishing} of {report.boxes} boxes are less than a pixel wide or high at image size {size}"
        yield Finding("box-vanishing", what, count=report.vanishing)
    if recall < LOW_RECALL:
        best = max((one.recall for one in report.suggestions), default=recall)
        what = (
            f"{1 - recall:.0%} of {report.boxes} boxes have an IoU below {MATCHING_IOU} with every anchor at image "
            f"size {size} (recall {recall:.2f}" + (f"; {best:.2f} with other settings)" if best > recall else ")")
        )
        yield Finding("anchor-recall", what, count=round((1 - recall) * report.boxes))
    if report.below_smallest:
        what = (
            f"{report.below_smallest} of {report.boxes} boxes are smaller than the smallest anchor "
            f"({report.smallest_anchor:g} pixels) at image size {size}"
        )
        yield Finding("box-small", what, count=report.below_smallest)


def options_of(suggestion: AnchorFit, current: AnchorFit) -> str:
    """What to add to the command that trains, to train with suggested settings."""
    options = []
    if suggestion.image_size != current.image_size:
        options.append(f"--image-size {suggestion.image_size}")
    if suggestion.anchor_scale != current.anchor_scale:
        options.append(f"--anchor-scale {suggestion.anchor_scale:g}")
    if suggestion.aspects != current.aspects:
        options.append(f"--aspects {','.join(f'{aspect:g}' for aspect in suggestion.aspects)}")
    return " ".join(options)


def _fit(best: NDArray[np.float64], spec: ModelSpec, image_size: int) -> AnchorFit:
    aspects = tuple(round(width / height, 2) for width, height in spec.aspects)
    recall = float((best >= MATCHING_IOU).mean())
    return AnchorFit(image_size, spec.anchor_scale, aspects, recall, float(best.mean()))


def _size(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of the area."""
    result: NDArray[np.float64] = np.sqrt((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1))
    return result


def _by_size(sizes: NDArray[np.float64], best: NDArray[np.float64]) -> Iterator[SizeRow]:
    bounds = (0, *SIZE_BOUNDS, np.inf)
    for low, high in itertools.pairwise(bounds):
        of_size = best[(sizes >= low) & (sizes < high)]
        if len(of_size):
            recall, mean = float((of_size >= MATCHING_IOU).mean()), float(of_size.mean())
            yield SizeRow(low, None if np.isinf(high) else high, len(of_size), recall, mean)


def _suggest(boxes: NDArray[np.float64], spec: ModelSpec, image_size: int, current: AnchorFit) -> list[AnchorFit]:
    """Settings with a better recall: other anchors at the same image size, another size, and where needed both."""

    def tried(size: int = image_size, **changes: Any) -> AnchorFit:
        other = dataclasses.replace(spec, **changes)
        return _fit(best_anchor_iou(boxes * (size / image_size), other, size), other, size)

    changes: list[Mapping[str, Any]] = [{"anchor_scale": scale} for scale in SCALES]
    # As many as before, so that trained weights fit.
    shapes = aspect_factors(typical_aspects(boxes, len(spec.aspects)))
    changes += [{"aspects": shapes}, *({"anchor_scale": scale, "aspects": shapes} for scale in SCALES)]
    by_anchors = _simplest([tried(**change) for change in changes])
    by_size = _simplest([tried(size) for size in range(image_size + SIZE_STEP, 2 * image_size + 1, SIZE_STEP)])
    found = [one for one in (by_anchors, by_size) if one.recall > current.recall + CLOSE_RECALL]
    if max((one.recall for one in found), default=1.0) < LOW_RECALL:
        both = _simplest([tried(by_size.image_size, **change) for change in changes])
        found += [both] if both.recall > max(one.recall for one in found) + CLOSE_RECALL else []
    return found


def _simplest(found: list[AnchorFit]) -> AnchorFit:
    """The first that nearly reaches the best recall; of the scales among those, the one with the best mean IoU."""
    most = max(one.recall for one in found)
    close = [one for one in found if one.recall >= most - CLOSE_RECALL]
    alike = [one for one in close if (one.aspects, one.image_size) == (close[0].aspects, close[0].image_size)]
    return max(alike, key=lambda one: one.mean_iou)


def typical_aspects(boxes_xyxy: NDArray[np.float64], count: int) -> tuple[float, ...]:
    """Aspect ratios (width over height) that are near those of many boxes: quantiles in the middle of equal parts.

    Args:
        boxes_xyxy: (N, 4), N at least 1.
        count: how many ratios.

    Returns:
        The ratios, rising, of two digits.
    """
    sides = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1e-6)
    typical = np.quantile(np.log(sides[:, 0] / sides[:, 1]), (np.arange(count) + 0.5) / count)
    found = {float(f"{np.exp(one):.2g}") for one in typical}
    for power in (1, -1, 2, -2, 3, -3):  # where boxes have fewer shapes: shapes around those
        found |= {float(f"{ratio * ASPECT_STEP**power:.2g}") for ratio in found} if len(found) < count else set()
    near = sorted(found, key=lambda ratio: float(np.abs(np.log(ratio) - typical).min()))
    return tuple(sorted(near[:count]))
