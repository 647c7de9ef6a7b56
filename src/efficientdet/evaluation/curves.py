"""From matches: precision-recall and F1 curves, average precision, calibration, and intervals by bootstrap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.evaluation.matching import Matches, paired_iou

RECALLS = np.linspace(0.0, 1.0, 101)
Floats = NDArray[np.float64]


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
    hits = np.cumsum(matches.hits(iou)[chosen], dtype=np.float64)
    return _curve(matches.detections.scores[chosen], hits, np.arange(1.0, len(hits) + 1), float(counted.sum()))


def _curve(scores: Floats, hits: Floats, kept: Floats, objects: float) -> Curve:
    recall = hits / objects if objects else np.full(len(hits), np.nan)
    return Curve(scores, np.divide(hits, kept, out=np.zeros_like(hits), where=kept > 0), recall, hits)


def average_precision(precision: Floats, recall: Floats) -> float:
    """Area under a precision-recall curve by COCO's rule (cocoapi `accumulate`).

    Args:
        precision: (n,) as the score falls.
        recall: (n,) rising.

    Returns:
        The mean over the recalls 0, 0.01, ... 1 of the best precision at that recall or a higher one.
    """
    if not len(recall):
        return 0.0
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    reached = places < len(recall)
    return float(np.where(reached, envelope[np.minimum(places, len(recall) - 1)], 0.0).mean())


def class_ap(matches: Matches, iou: float | None = None, image_weights: NDArray[np.int64] | None = None) -> Floats:
    """Average precision of each class.

    Args:
        matches: the matches.
        iou: IoU threshold; None for the mean over all ten.
        image_weights: (I,) how often each image counts; None for once.

    Returns:
        (K,) float64, nan for a class without objects.
    """
    thresholds = matches.iou_thresholds if iou is None else np.array([iou])
    weights = np.ones(len(matches.image_ids), np.int64) if image_weights is None else image_weights
    counted = ~matches.objects.is_ignored
    objects = np.bincount(
        matches.objects.labels[counted], weights[matches.objects.images[counted]], minlength=len(matches.class_names)
    )
    result = np.full(len(matches.class_names), np.nan)
    by_class = np.argsort(matches.detections.labels, kind="stable")
    bounds = np.searchsorted(matches.detections.labels[by_class], np.arange(len(result) + 1))
    for label in np.flatnonzero(objects):
        rows = by_class[bounds[label] : bounds[label + 1]]
        own = weights[matches.detections.images[rows]].astype(np.float64)
        values = []
        for threshold in thresholds:
            level = matches.threshold_index(float(threshold))
            counts = own * ~matches.is_ignored[level, rows]
            hits = np.cumsum(counts * (matches.objects_found[level, rows] >= 0))
            curve = _curve(matches.detections.scores[rows], hits, np.cumsum(counts), objects[label])
            values.append(average_precision(curve.precision, curve.recall))
        result[label] = np.mean(values)
    return result


def mean_iou_of_hits(matches: Matches, score_threshold: float = 0.0) -> float:
    """Mean IoU of the detections that found an object at IoU 0.5; nan if there are none."""
    rows = np.flatnonzero(matches.hits() & (matches.detections.scores >= score_threshold))
    columns = matches.objects_found[matches.threshold_index(0.5), rows]
    boxes, others = matches.detections.boxes_xywh[rows], matches.objects.boxes_xywh[columns]
    return float(paired_iou(boxes, others, np.zeros(len(rows), np.bool_)).mean()) if len(rows) else float("nan")


class Calibration(NamedTuple):
    """How well scores agree with the share of detections that are right (Guo et al. 2017, section 2).

    Attributes:
        mean_scores: (B,) mean score of the detections of each bin; nan where it is empty.
        precisions: (B,) share of them that found an object at IoU 0.5; nan likewise.
        counts: (B,) number of detections.
        error: expected calibration error: the mean of |score - precision|, weighted by count.
    """

    mean_scores: Floats
    precisions: Floats
    counts: NDArray[np.int64]
    error: float


def calibration(matches: Matches, score_threshold: float = 0.05, bins: int = 10) -> Calibration:
    """The reliability curve of the detections at or above a score.

    Args:
        matches: the matches.
        score_threshold: lower scores are left out: they are by far the most, and nobody looks at them.
        bins: number of bins of equal width between 0 and 1.
    """
    chosen = ~matches.is_ignored[matches.threshold_index(0.5)] & (matches.detections.scores >= score_threshold)
    scores, hits = matches.detections.scores[chosen], matches.hits()[chosen]
    bin_numbers = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_numbers, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bin_numbers, scores, minlength=bins) / counts
        precisions = np.bincount(bin_numbers, hits, minlength=bins) / counts
    gaps = np.abs(means - precisions)[counts > 0]
    error = float((gaps * counts[counts > 0]).sum() / max(1, counts.sum()))
    return Calibration(means, precisions, counts.astype(np.int64), error)


def bootstrap_weights(images: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """(resamples, images) how often each image is drawn when as many images are drawn with replacement."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, images, (resamples, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.int64)


def bootstrap_interval(
    matches: Matches, iou: float | None = None, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean AP over classes, from resampled images (Efron's percentile bootstrap).

    Args:
        matches: the matches.
        iou: IoU threshold; None for the mean over all ten.
        resamples: number of resampled datasets.
        seed: of the resampling.

    Returns:
        Lower and upper end; nan without objects.
    """
    if not matches.objects_by_class().any():
        return float("nan"), float("nan")
    weights = bootstrap_weights(len(matches.image_ids), resamples, seed)
    values = [np.nanmean(aps) for aps in (class_ap(matches, iou, row) for row in weights) if not np.isnan(aps).all()]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
