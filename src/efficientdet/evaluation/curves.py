"""From matches: precision-recall and F1 curves, average precision by COCO's rule and by VOC's, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from efficientdet.evaluation.matching import NOTHING, Matches, paired_iou

RECALLS = np.linspace(0.0, 1.0, 101)
# Numbers that resampled curves of a class hold at a time.
CHUNK = 1 << 21
# Lower scores are left out of the calibration: they are by far the most, and nobody looks at them.
CALIBRATED_SCORE, CALIBRATION_BINS = 0.05, 10
Floats = NDArray[np.float64]
Rule: TypeAlias = Literal["coco", "voc"]


class Curve(NamedTuple):
    """Precision and recall of a class as the score threshold falls: a point after each detection that counts.

    Attributes:
        scores: (n,) float64, falling; a detection is kept if its score is at least this.
        precision: (n,) float64, share of the kept detections that found an object.
        recall: (n,) float64, share of the objects that were found; nan where the class has none.
        hits: (n,) float64, number of objects found.
    """

    scores: Floats
    precision: Floats
    recall: Floats
    hits: Floats

    @property
    def f1(self) -> Floats:
        """(n,) harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, both, out=np.zeros_like(both), where=both > 0)

    def at(self, score_threshold: float) -> int:
        """Index of the last point whose score is at least a threshold; -1 if there is none."""
        return int(np.searchsorted(-self.scores, -score_threshold, side="right")) - 1


def precision_recall(
    matches: Matches, label: int | None = None, iou: float = 0.5, images: NDArray[np.bool_] | None = None
) -> Curve:
    """The precision-recall curve of a class, or of all detections together.

    Args:
        matches: the matches.
        label: the class; None for all.
        iou: IoU threshold, one of `matches.iou_thresholds`.
        images: (I,) mask of the images that count; None for all.
    """
    chosen = ~matches.is_ignored[matches.threshold_index(iou)]
    counted = ~matches.objects.is_ignored
    if images is not None:
        chosen = chosen & images[matches.detections.images]
        counted &= images[matches.objects.images]
    if label is not None:
        chosen = chosen & (matches.detections.labels == label)
        counted &= matches.objects.labels == label
    hits, objects = np.cumsum(matches.hits(iou)[chosen], dtype=np.float64), float(counted.sum())
    recall = hits / objects if objects else np.full(len(hits), np.nan)
    return Curve(matches.detections.scores[chosen], hits / np.arange(1.0, len(hits) + 1), recall, hits)


def average_precision(precision: Floats, recall: Floats, rule: Rule = "coco") -> Floats:
    """Area under precision-recall curves whose precision is made to fall: the best at that recall or a higher one.

    Args:
        precision: (..., n) as the score falls.
        recall: (..., n) rising.
        rule: `coco`, the mean over the recalls 0, 0.01, ... 1 (cocoapi `accumulate`); or `voc`, the area under all
            points (Everingham et al. 2015, section 4.2.2; VOC 2010 and later).

    Returns:
        (...,) areas.
    """
    shape, points = recall.shape[:-1], recall.shape[-1]
    if not points:
        return np.zeros(shape)
    falling = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    if rule == "voc":
        areas: Floats = (np.diff(recall, axis=-1, prepend=0.0) * falling).sum(-1)
        return areas
    # One search for all curves: each is lifted above the one before it.
    rows = np.arange(recall.size // points)[:, None]
    lifted = recall.reshape(-1, points) + 2.0 * rows
    places = np.searchsorted(lifted.ravel(), (RECALLS + 2.0 * rows).ravel()).reshape(-1, len(RECALLS)) - rows * points
    reached = np.take_along_axis(falling.reshape(-1, points), np.minimum(places, points - 1), 1)
    means: Floats = np.where(places < points, reached, 0.0).mean(1).reshape(shape)
    return means


def class_ap(matches: Matches, iou: float | None = None, rule: Rule = "coco") -> Floats:
    """Average precision of each class.

    Args:
        matches: the matches.
        iou: IoU threshold; None for the mean over all ten.
        rule: see `average_precision`.

    Returns:
        (K,) float64, nan for a class without objects.
    """
    weights = np.ones((1, len(matches.image_ids)), np.int64)
    aps: Floats = resampled_ap(matches, weights, None if iou is None else [iou], rule)[0].mean(0)
    return aps


def resampled_ap(
    matches: Matches, image_weights: NDArray[np.int64], ious: Sequence[float] | None = None, rule: Rule = "coco"
) -> Floats:
    """Average precision of each class on images some of which count several times, or not at all.

    Args:
        matches: the matches.
        image_weights: (R, I) how often each image counts, in each of R resamplings.
        ious: IoU thresholds; None for all ten.
        rule: see `average_precision`.

    Returns:
        (R, T, K) float64, nan for a class without objects.
    """
    levels = [matches.threshold_index(float(iou)) for iou in (matches.iou_thresholds if ious is None else ious)]
    result = np.full((len(image_weights), len(levels), len(matches.class_names)), np.nan)
    counted = np.flatnonzero(~matches.objects.is_ignored)
    by_class = np.argsort(matches.detections.labels, kind="stable")
    bounds = np.searchsorted(matches.detections.labels[by_class], np.arange(len(matches.class_names) + 1))
    for label in range(len(matches.class_names)):
        rows = by_class[bounds[label] : bounds[label + 1]]
        own = counted[matches.objects.labels[counted] == label]
        size = max(1, CHUNK // max(1, len(rows)))
        for start in range(0, len(image_weights) if len(own) else 0, size):
            weights = image_weights[start : start + size]
            part = _class_ap(matches, weights, levels, rows, weights[:, matches.objects.images[own]].sum(1), rule)
            result[start : start + size, :, label] = part
    return result


def _class_ap(
    matches: Matches,
    weights: NDArray[np.int64],
    levels: list[int],
    rows: NDArray[np.int64],
    objects: Floats,
    rule: Rule,
) -> Floats:
    """(R, T) of a class: its detections' rows, and its number of objects in each resampling, (R,)."""
    own = weights[:, matches.detections.images[rows]].astype(np.float64)
    values = np.zeros((len(weights), len(levels)))
    for number, level in enumerate(levels):
        is_counted = ~matches.is_ignored[level, rows]
        is_hit = is_counted & (matches.objects_found[level, rows] != NOTHING)
        # Precision is best, and recall rises, at hits alone.
        kept = np.cumsum(own * is_counted, axis=1)[:, is_hit]
        hits = np.cumsum(own[:, is_hit], axis=1)
        precision = np.divide(hits, kept, out=np.zeros_like(hits), where=kept > 0)
        recall = np.divide(hits, objects[:, None], out=np.zeros_like(hits), where=objects[:, None] > 0)
        values[:, number] = average_precision(precision, recall, rule)
    return np.where(objects[:, None] > 0, values, np.nan)


def iou_of_hits(matches: Matches) -> Floats:
    """(N,) IoU of each detection with the object that it found at IoU 0.5; 0 where it found none."""
    ious = np.zeros(len(matches.detections))
    rows = np.flatnonzero(matches.hits())
    columns = matches.objects_found[matches.threshold_index(0.5), rows]
    boxes, others = matches.detections.boxes_xywh[rows], matches.objects.boxes_xywh[columns]
    ious[rows] = paired_iou(boxes, others, np.zeros(len(rows), np.bool_))
    return ious


class Calibration(NamedTuple):
    """How well scores agree with the share of detections that are right (Guo et al. 2017, section 2).

    Attributes:
        mean_scores: (..., B) mean score of the detections of each bin; nan where it is empty.
        precisions: (..., B) share of them that found an object at IoU 0.5; nan likewise.
        counts: (..., B) number of detections.
        error: (...,) expected calibration error: the mean of |score - precision|, weighted by count.
    """

    mean_scores: Floats
    precisions: Floats
    counts: Floats
    error: Floats


def calibration(matches: Matches, image_weights: NDArray[np.int64] | None = None) -> Calibration:
    """The reliability curve of the detections with a score of 0.05 or more, in ten bins of equal width.

    Args:
        matches: the matches.
        image_weights: (..., I) how often each image counts; None for once.
    """
    chosen = ~matches.is_ignored[matches.threshold_index(0.5)] & (matches.detections.scores >= CALIBRATED_SCORE)
    scores, hits = matches.detections.scores[chosen], matches.hits()[chosen]
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    places = matches.detections.images[chosen] * CALIBRATION_BINS + bins
    images = len(matches.image_ids)
    sums = [
        np.bincount(places, values, minlength=images * CALIBRATION_BINS).reshape(images, CALIBRATION_BINS)
        for values in (np.ones(len(scores)), scores, hits.astype(np.float64))
    ]
    weights = np.ones(images) if image_weights is None else image_weights.astype(np.float64)
    counts, means, precisions = (weights @ values for values in sums)
    with np.errstate(invalid="ignore"):
        means, precisions = means / counts, precisions / counts
    gaps = np.where(counts > 0, np.abs(means - precisions), 0.0)
    return Calibration(means, precisions, counts, (gaps * counts).sum(-1) / np.maximum(1, counts.sum(-1)))
