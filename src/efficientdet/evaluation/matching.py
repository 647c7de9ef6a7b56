"""Which detection found which object: the one table that AP, curves, confusion and errors are computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.errors import DataError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# COCO counts the best detections of each image and class up to this number.
MAX_DETECTIONS = 100
# Pairs of boxes whose overlap is computed at a time.
CHUNK = 1 << 22
NOTHING = -1


@dataclass(frozen=True, eq=False)
class Boxes:
    """Annotated objects, or detections, of all images as columns; M rows.

    Attributes:
        images: (M,) int64, index of the image.
        labels: (M,) int64, 0-based index of the class.
        boxes_xywh: (M, 4) float64, left, top, width, height in pixels of the original image, as COCO has them.
        areas: (M,) float64, square pixels: the annotation's, else the box's.
        scores: (M,) float64; 1 for objects.
        is_ignored: (M,) bool, objects (COCO crowds) that neither have to be found nor make a detection on them wrong.
        numbers: (M,) int64, place among those of the image, from 0; of detections as the detector gave them.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    scores: NDArray[np.float64]
    is_ignored: NDArray[np.bool_]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.images)

    def __getitem__(self, rows: NDArray[Any]) -> Boxes:
        """Select rows."""
        return Boxes(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections and objects of an evaluation, and which found which by COCO's rules.

    In each image and class the detections, best first, each take the free object that they overlap most, if the IoU
    reaches the threshold (Lin et al. 2014; cocoapi `evaluateImg`). N detections, M objects, T IoU thresholds.

    Attributes:
        image_ids: the dataset's id of each image.
        class_names: by label.
        objects: the annotated boxes.
        detections: sorted by score, best first; at most 100 of an image and class.
        iou_thresholds: (T,) float64, 0.50:0.05:0.95.
        objects_found: (T, N) int64, the object that a detection found, -1 for none.
        is_ignored: (T, N) bool, detections that count neither as right nor as wrong: they found an ignored object.
    """

    image_ids: tuple[Any, ...]
    class_names: tuple[str, ...]
    objects: Boxes
    detections: Boxes
    objects_found: NDArray[np.int64]
    is_ignored: NDArray[np.bool_]
    iou_thresholds: NDArray[np.float64] = field(default_factory=lambda: IOU_THRESHOLDS)

    def threshold_index(self, iou: float) -> int:
        """Row of an IoU threshold.

        Raises:
            ValueError: it is not one of `iou_thresholds`.
        """
        near = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        if not len(near):
            raise ValueError(f"iou is {iou}; detections were matched at {self.iou_thresholds.round(2).tolist()}")
        return int(near[0])

    def objects_by_class(self) -> NDArray[np.int64]:
        """(K,) number of objects to find."""
        counted = self.objects.labels[~self.objects.is_ignored]
        return np.bincount(counted, minlength=len(self.class_names)).astype(np.int64)

    def hits(self, iou: float = 0.5) -> NDArray[np.bool_]:
        """(N,) whether each detection found an object that counts, at an IoU threshold."""
        level = self.threshold_index(iou)
        hits: NDArray[np.bool_] = (self.objects_found[level] != NOTHING) & ~self.is_ignored[level]
        return hits


@dataclass(frozen=True, eq=False)
class EvaluationTable:
    """Objects and detections of an evaluation as columns, checked.

    Attributes:
        image_ids: the dataset's id of each image, sorted: the order in which COCO breaks ties between equal scores.
        category_ids: the dataset's id of each class, sorted.
        class_names: of the same classes; with the id behind a name that several have.
        objects: the annotated boxes.
        detections: in the order in which they were given.
    """

    image_ids: tuple[Any, ...]
    category_ids: tuple[Any, ...]
    class_names: tuple[str, ...]
    objects: Boxes
    detections: Boxes


def read_table(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> EvaluationTable:
    """Columns from COCO's dictionaries. Neither argument is changed.

    Args:
        ground_truth: COCO dictionary with `images`, `annotations` and `categories`. Ids may be numbers, 0 included, or
            texts. `area` may be missing (then it is the box's), and `iscrowd` (then it is 0).
        results: COCO results: dictionaries with `image_id`, `category_id`, `bbox` (x, y, width, height in pixels of the
            original image) and `score`; `number` may say its place among those of the image.

    Returns:
        The table.

    Raises:
        DataError: an annotation or a result is of an image or category that the ground truth does not list, lacks a
            field, or has a number that is not finite; names the row.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: sort_key(category["id"]))
    images = _numbers(image["id"] for image in ground_truth["images"])
    labels = _numbers(category["id"] for category in categories)
    return EvaluationTable(
        tuple(images),
        tuple(labels),
        tuple(_distinct_names(categories)),
        _columns("annotation", ground_truth["annotations"], images, labels),
        _columns("result", results, images, labels),
    )


def _columns(what: str, rows: Sequence[dict[str, Any]], images: dict[Any, int], labels: dict[Any, int]) -> Boxes:
    for field_name, known, listed in (("image_id", images, "images"), ("category_id", labels, "categories")):
        for number, row in enumerate(rows, start=1):
            if row.get(field_name) not in known:
                raise DataError(
                    f"{what} {number}: {field_name} {row.get(field_name)!r} is not among the ground truth's {listed}"
                )
    boxes = _finite(what, rows, "bbox", (4,))
    areas = boxes[:, 2] * boxes[:, 3]
    if what == "annotation":
        given = np.array([np.nan if row.get("area") is None else row["area"] for row in rows], dtype=np.float64)
        areas = np.where(np.isnan(given), areas, given)
    own_images = np.array([images[row["image_id"]] for row in rows], dtype=np.int64)
    order, places = np.argsort(own_images, kind="stable"), np.zeros(len(rows), np.int64)
    places[order] = _ranks(own_images[order])
    numbers = np.array([row.get("number", -1) for row in rows], dtype=np.int64)
    return Boxes(
        own_images,
        np.array([labels[row["category_id"]] for row in rows], dtype=np.int64),
        boxes,
        areas,
        _finite(what, rows, "score", ()) if what == "result" else np.ones(len(rows)),
        np.array([bool(row.get("iscrowd")) for row in rows], dtype=np.bool_),
        np.where(numbers < 0, places, numbers),
    )


def _finite(what: str, rows: Sequence[dict[str, Any]], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(M, *shape) numbers of a field; an error that names the first row without them."""
    try:
        values = np.array([row[name] for row in rows], dtype=np.float64).reshape(len(rows), *shape)
        if np.isfinite(values).all():
            return values
    except (KeyError, TypeError, ValueError):
        pass
    for number, row in enumerate(rows, start=1):
        value: Any = row.get(name)
        try:
            fits = np.shape(value) == shape and np.isfinite(np.array(value, np.float64)).all()
        except (TypeError, ValueError):
            fits = False
        if not fits:
            expected = "4 finite numbers" if shape else "a finite number"
            raise DataError(
                f"{what} {number} of image_id {row['image_id']!r}: {name} is {value!r}; it must be {expected}"
            )
    raise AssertionError  # one of them is at fault


def _numbers(ids: Any) -> dict[Any, int]:
    """Ids -> 0, 1, 2, ... in sorted order."""
    return {identity: number for number, identity in enumerate(sorted(set(ids), key=sort_key))}


def sort_key(identity: Any) -> tuple[str, Any]:
    """Sorts ids of one type by value, and lets numbers and strings stand in one list."""
    return (type(identity).__name__, identity)


def _distinct_names(categories: list[dict[str, Any]]) -> list[str]:
    """Class names, with the category id behind those that several categories share."""
    counts = Counter(category["name"] for category in categories)
    return [
        category["name"] if counts[category["name"]] == 1 else f"{category['name']} ({category['id']})"
        for category in categories
    ]


def match(table: EvaluationTable) -> Matches:
    """Match detections with objects by COCO's rules, at ten IoU thresholds.

    Args:
        table: objects and detections. Among equal scores the earlier image, then the earlier row goes first.

    Returns:
        The matches.
    """
    classes = max(len(table.class_names), 1)
    detections = _best_of_each_group(table.detections, classes)
    found, on_ignored = _assign(table.objects, detections, classes)
    order = np.lexsort((np.arange(len(detections)), detections.images, -detections.scores))
    return Matches(
        table.image_ids, table.class_names, table.objects, detections[order], found[:, order], on_ignored[:, order]
    )


def _best_of_each_group(detections: Boxes, classes: int) -> Boxes:
    """Sorted by image and class, then by score; the best 100 of each."""
    group = detections.images * classes + detections.labels
    order = np.lexsort((-detections.scores, group))  # stable
    ranks = _ranks(group[order])
    return detections[order[ranks < MAX_DETECTIONS]]


def _ranks(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each row in its group; equal groups stand together."""
    if not len(groups):
        return groups
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    lengths = np.diff(np.r_[starts, len(groups)])
    return np.arange(len(groups)) - np.repeat(starts, lengths)


def _assign(objects: Boxes, detections: Boxes, classes: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(T, N) object that each detection found, and whether that is an ignored one.

    All images and classes go at once: the best detection of each takes its object, then the second best, ...
    """
    groups = detections.images * classes + detections.labels
    rows, columns, ious = overlapping_pairs(objects, detections, classes)
    ranks = _ranks(groups)[rows]
    # The order in which a detection tries objects: first those that count, then by IoU, then COCO's choice, the last.
    order = np.lexsort((-columns, -ious, objects.is_ignored[columns], rows, ranks))
    rows, columns, ious, ranks = rows[order], columns[order], ious[order], ranks[order]
    thresholds = IOU_THRESHOLDS[:, None]
    found = np.full((len(thresholds), len(detections)), NOTHING, np.int64)
    is_taken = np.zeros((len(thresholds), len(objects)), np.bool_)
    bounds = np.searchsorted(ranks, np.arange(ranks[-1] + 2)) if len(ranks) else np.zeros(1, np.int64)
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        pair_rows, pair_columns = rows[first:last], columns[first:last]
        is_free = ~is_taken[:, pair_columns] | objects.is_ignored[pair_columns]
        is_possible = is_free & (ious[first:last] >= thresholds)
        levels, places = is_possible.nonzero()
        # The first possible pair of each detection and threshold.
        keys = levels * np.int64(len(detections)) + pair_rows[places]
        _, chosen = np.unique(keys, return_index=True)
        levels, places = levels[chosen], places[chosen]
        found[levels, pair_rows[places]] = pair_columns[places]
        is_taken[levels, pair_columns[places]] = True
    on_ignored = (found != NOTHING) & objects.is_ignored[found] if len(objects) else np.zeros(found.shape, np.bool_)
    return found, on_ignored


def overlapping_pairs(
    objects: Boxes, detections: Boxes, classes: int | None, smallest_iou: float = 0.5
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of a detection and an object of one image that overlap.

    Args:
        objects: annotated boxes.
        detections: detections.
        classes: number of classes, for pairs of one class; None pairs all classes of an image.
        smallest_iou: of the pairs; for ignored objects the share of the detection inside counts instead.

    Returns:
        Three (P,) arrays: index of the detection, index of the object, IoU.
    """
    factor = classes or 1
    keys = [b.images * factor + (b.labels if classes else 0) for b in (objects, detections)]
    order = np.argsort(keys[0], kind="stable")
    first = np.searchsorted(keys[0][order], keys[1], "left")
    counts = np.searchsorted(keys[0][order], keys[1], "right") - first
    found = []
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK, "right")))
        rows = np.repeat(np.arange(start, stop), counts[start:stop])
        places = np.arange(len(rows)) - np.repeat(ends[start:stop] - counts[start:stop] - done, counts[start:stop])
        columns = order[first[rows] + places]
        ious = paired_iou(detections.boxes_xywh[rows], objects.boxes_xywh[columns], objects.is_ignored[columns])
        near = ious >= smallest_iou
        found.append((rows[near], columns[near], ious[near]))
        start = stop
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    rows, columns, ious = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, columns, ious


def paired_iou(
    detections: NDArray[np.float64], objects: NDArray[np.float64], is_ignored: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(P,) IoU of (P, 4) boxes xywh, pair by pair; with ignored objects the share of the detection inside (cocoapi)."""
    first = np.maximum(detections[:, :2], objects[:, :2])
    last = np.minimum(detections[:, :2] + detections[:, 2:], objects[:, :2] + objects[:, 2:])
    shared = np.prod((last - first).clip(0), axis=1)
    area, other = np.prod(detections[:, 2:], axis=1), np.prod(objects[:, 2:], axis=1)
    whole = np.where(is_ignored, area, area + other - shared)
    ious: NDArray[np.float64] = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return ious
