"""From matches: the confusion matrix, and mistakes by kind with the AP that each kind costs (TIDE)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.evaluation.curves import average_precision
from efficientdet.evaluation.matching import NOTHING, Matches, overlapping_pairs

# The kinds of TIDE (Bolya et al. 2020, section 2.2), in the order in which its tool lists them.
KINDS = {
    "classification": "overlaps an object of another class by IoU 0.5",
    "localization": "overlaps an object of its class by IoU 0.1 to 0.5",
    "both": "overlaps an object of another class by IoU 0.1 to 0.5",
    "duplicate": "overlaps an object that a better detection found already",
    "background": "overlaps no object by IoU 0.1",
    "missed": "object that no detection found, nor nearly found",
}
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
RIGHT = -1
POSITIVE_IOU, BACKGROUND_IOU = 0.5, 0.1


def is_kept(matches: Matches, score_threshold: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether each detection reaches the score threshold: one for all, or (K,) one for each class."""
    thresholds = np.broadcast_to(np.asarray(score_threshold, np.float64), len(matches.class_names))
    kept: NDArray[np.bool_] = matches.detections.scores >= thresholds[matches.detections.labels]
    return kept


def wrong_and_missed(
    matches: Matches, score_threshold: float | NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections (N,) are wrong, and which objects (M,) are missed, at a score threshold and IoU 0.5."""
    level = matches.threshold_index(POSITIVE_IOU)
    kept = is_kept(matches, score_threshold) & ~matches.is_ignored[level]
    is_wrong = kept & (matches.objects_found[level] == NOTHING)
    is_missed = ~matches.objects.is_ignored
    is_missed[matches.objects_found[level][kept & ~is_wrong]] = False
    return is_wrong, is_missed


def mistakes_by_image(matches: Matches, score_threshold: float | NDArray[np.float64]) -> NDArray[np.int64]:
    """(I,) wrong detections and missed objects of each image, at a score threshold and IoU 0.5."""
    is_wrong, is_missed = wrong_and_missed(matches, score_threshold)
    images = np.concatenate([matches.detections.images[is_wrong], matches.objects.images[is_missed]])
    return np.bincount(images, minlength=len(matches.image_ids)).astype(np.int64)


def confusion_matrix(matches: Matches, score_threshold: float | NDArray[np.float64]) -> NDArray[np.int64]:
    """What objects were taken for, at IoU 0.5.

    A detection that found an object of its class stands on the diagonal, as in precision and recall. A wrong detection
    that overlaps a missed object of another class stands in that object's row, each object once, best score first. The
    rest are background: detections in the last row, objects in the last column.

    Args:
        matches: the matches.
        score_threshold: detections with lower scores are left out; one for all, or (K,) one for each class.

    Returns:
        (K + 1, K + 1) int64: rows are annotated classes, columns are predicted classes, background is last. A row's
        sum is the class's number of objects, a column's its number of detections, ignored ones left out.
    """
    classes, level = len(matches.class_names), matches.threshold_index(POSITIVE_IOU)
    rows = np.flatnonzero(is_kept(matches, score_threshold) & ~matches.is_ignored[level])
    found = matches.objects_found[level, rows]
    actual = np.full(len(rows), classes)
    actual[found != NOTHING] = matches.objects.labels[found[found != NOTHING]]
    is_missed = ~matches.objects.is_ignored
    is_missed[found[found != NOTHING]] = False
    wrong, missed = np.flatnonzero(found == NOTHING), np.flatnonzero(is_missed)
    pairs = overlapping_pairs(matches.objects[missed], matches.detections[rows[wrong]], None, POSITIVE_IOU)
    for row, column in _one_to_one(*pairs):
        actual[wrong[row]] = matches.objects.labels[missed[column]]
        is_missed[missed[column]] = False
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (actual, matches.detections.labels[rows]), 1)
    matrix[:classes, classes] = np.bincount(matches.objects.labels[is_missed], minlength=classes)
    return matrix


def _one_to_one(
    rows: NDArray[np.int64], columns: NDArray[np.int64], ious: NDArray[np.float64]
) -> list[tuple[int, int]]:
    """Pairs in which no row and no column stands twice: lower rows choose first, by IoU."""
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    order = np.lexsort((columns, -ious, rows))
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in chosen and column not in taken:
            chosen[row] = column
            taken.add(column)
    return list(chosen.items())


class Mistakes(NamedTuple):
    """What is wrong with each detection, and which objects were missed, at IoU 0.5 (TIDE).

    Attributes:
        kinds: (N,) int64, index into `KINDS`; -1 for a detection that is right or ignored.
        objects: (N,) int64, the object that a wrong class or place is about; -1 for none.
        is_missed: (M,) bool.
    """

    kinds: NDArray[np.int64]
    objects: NDArray[np.int64]
    is_missed: NDArray[np.bool_]

    def count_by_kind(self) -> dict[str, int]:
        """Number of mistakes by kind."""
        counts = [int((self.kinds == kind).sum()) for kind in range(MISSED)] + [int(self.is_missed.sum())]
        return dict(zip(KINDS, counts, strict=True))


def find_mistakes(matches: Matches) -> Mistakes:
    """The mistake of each wrong detection, and the objects that were missed (Bolya et al. 2020, section 2.2)."""
    level = matches.threshold_index(POSITIVE_IOU)
    objects, detections = matches.objects, matches.detections
    found, hits = matches.objects_found[level], matches.hits(POSITIVE_IOU)
    is_found = np.zeros(len(objects), np.bool_)
    is_found[found[hits]] = True
    counted = np.flatnonzero(~objects.is_ignored)
    rows, columns, ious = overlapping_pairs(objects[counted], detections, None, BACKGROUND_IOU)
    columns = counted[columns]
    is_own = objects.labels[columns] == detections.labels[rows]
    own, own_iou = _best(rows, columns, ious, is_own, len(detections))
    other, other_iou = _best(rows, columns, ious, ~is_own, len(detections))
    _, found_iou = _best(rows, columns, ious, is_own & is_found[columns], len(detections))
    kinds = np.select(
        [
            hits | matches.is_ignored[level],
            (own_iou >= BACKGROUND_IOU) & (own_iou <= POSITIVE_IOU),
            other_iou >= POSITIVE_IOU,
            found_iou >= POSITIVE_IOU,
            np.maximum(own_iou, other_iou) <= BACKGROUND_IOU,
        ],
        [RIGHT, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    about = np.select([kinds == LOCALIZATION, kinds == CLASSIFICATION], [own, other], NOTHING)
    is_missed = ~objects.is_ignored & ~is_found
    is_missed[about[about != NOTHING]] = False
    return Mistakes(kinds, about, is_missed)


def _best(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    ious: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of `count` rows the column of its chosen pair with the highest IoU, the first of equals, and its IoU."""
    rows, columns, ious = rows[chosen], columns[chosen], ious[chosen]
    order = np.lexsort((-columns, ious, rows))  # of what is written to one place, the last stays
    best, best_iou = np.full(count, NOTHING, np.int64), np.zeros(count)
    best[rows[order]], best_iou[rows[order]] = columns[order], ious[order]
    return best, best_iou


def cost_of_mistakes(matches: Matches, mistakes: Mistakes) -> dict[str, float]:
    """The AP at IoU 0.5 that mending each kind of mistake would add, 0..1 (Bolya et al. 2020, section 2.3).

    A wrong class or place is mended by making it right, for the best detection on each object that was not found, and
    by dropping the others; duplicates, background and both are dropped; missed objects no longer count.

    Args:
        matches: the matches.
        mistakes: of the same matches.
    """
    detections, level = matches.detections, matches.threshold_index(POSITIVE_IOU)
    hits, counts = matches.hits(POSITIVE_IOU), ~matches.is_ignored[level]
    objects = matches.objects_by_class()
    is_found = np.zeros(len(matches.objects), np.bool_)
    is_found[matches.objects_found[level][hits]] = True
    mended = _first_on_each_object(mistakes, is_found)

    before = _mean_ap50(detections.labels[counts], hits[counts], objects)
    gains = {}
    for kind, name in enumerate(KINDS):
        if kind == MISSED:
            left = objects - np.bincount(matches.objects.labels[mistakes.is_missed], minlength=len(objects))
            after = _mean_ap50(detections.labels[counts], hits[counts], left)
        else:
            is_kind = mistakes.kinds == kind
            is_mended = mended & is_kind
            labels = detections.labels.copy()
            labels[is_mended] = matches.objects.labels[mistakes.objects[is_mended]]
            kept = (counts & ~is_kind) | is_mended
            after = _mean_ap50(labels[kept], (hits | is_mended)[kept], objects)
        gains[name] = max(0.0, after - before)
    return gains


def _first_on_each_object(mistakes: Mistakes, is_found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) the best detection on each object that was not found; detections stand in the order of their scores."""
    is_about = mistakes.objects != NOTHING
    is_about[is_about] = ~is_found[mistakes.objects[is_about]]
    rows = np.flatnonzero(is_about)
    _, first = np.unique(mistakes.objects[rows], return_index=True)
    result = np.zeros(len(mistakes.kinds), np.bool_)
    result[rows[first]] = True
    return result


def _mean_ap50(labels: NDArray[np.int64], hits: NDArray[np.bool_], objects: NDArray[np.int64]) -> float:
    """Mean over the classes that have objects or detections; the rows stand in the order of their scores."""
    values = []
    for label, count in enumerate(objects):
        own = np.cumsum(hits[labels == label], dtype=np.float64)
        if count <= 0:
            values += [0.0] if len(own) else []
        else:
            values.append(float(average_precision(own / np.arange(1, len(own) + 1), own / count)))
    return float(np.mean(values)) if values else 0.0
