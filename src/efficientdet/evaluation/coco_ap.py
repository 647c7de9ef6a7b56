"""COCO average precision: the twelve numbers and AP by class, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.atomic_write import write_json
from efficientdet.errors import require
from efficientdet.evaluation.matching import Boxes, EvaluationTable, Matches, read_table
from efficientdet.text import printable


@dataclass(frozen=True)
class Metrics:
    """COCO's numbers, each 0..1, or -1 where the ground truth has no such box.

    Attributes:
        ap: average precision, mean over IoU thresholds 0.50:0.05:0.95 and over classes.
        ap50: the same at IoU 0.50 alone.
        ap75: the same at IoU 0.75 alone.
        ap_small: AP of boxes with an area under 32*32 pixels of the original image.
        ap_medium: AP of boxes with an area from 32*32 to 96*96.
        ap_large: AP of boxes with an area above 96*96.
        ar1: average recall with at most 1 detection per image and class.
        ar10: the same with 10.
        ar100: the same with 100.
        ar_small: ar100 of small boxes.
        ar_medium: ar100 of medium boxes.
        ar_large: ar100 of large boxes.
        per_class: AP by class name; None for a class without boxes in the ground truth.
        per_class_ap50: AP at IoU 0.50 by class name; None likewise.
        images: number of images evaluated.
        boxes: number of boxes in the ground truth, without crowd boxes.
        images_per_second: from file to boxes, where `evaluate` made these metrics.
        matches: which detection found which object, where `evaluate` made these metrics; not part of `to_dict`.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float | None]
    per_class_ap50: dict[str, float | None]
    images: int
    boxes: int
    images_per_second: float | None = field(default=None, compare=False)
    matches: Matches | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain types by attribute name, ready for JSON."""
        fields = asdict(replace(self, matches=None))
        del fields["matches"]
        return fields

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` to a file, which never exists half-written."""
        write_json(path, self.to_dict())

    def rows(self) -> list[dict[str, str]]:
        """AP of all classes together and of each, as text."""
        by_class = [(name, ap, self.per_class_ap50[name]) for name, ap in self.per_class.items()]
        return [
            {"class": printable(name, 80), "AP": number(ap), "AP50": number(ap50)}
            for name, ap, ap50 in [("all", self.ap, self.ap50), *by_class]
        ]


def coco_metrics(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> Metrics:
    """COCO's average precision and recall of detections. Neither argument is changed.

    Args:
        ground_truth: COCO dictionary with `images`, `annotations` and `categories`. Ids may be numbers, 0 included, or
            texts. `area` may be missing (then it is the box's), and `iscrowd` (then it is 0).
        results: COCO results: dictionaries with `image_id`, `category_id`, `bbox` (x, y, width, height in pixels of the
            original image) and `score`. The 100 best of each image and class count.

    Returns:
        The metrics: 0 without any detection, -1 without boxes in the ground truth.

    Raises:
        DataError: an annotation or a result is of an image or category that the ground truth does not list.
        MissingExtraError: faster-coco-eval is not installed.
    """
    return metrics_of(read_table(ground_truth, results))


def metrics_of(table: EvaluationTable) -> Metrics:
    """The same as `coco_metrics`, of what `read_table` has read."""
    precision, recall = _accumulate(table)
    return Metrics(
        **_twelve_numbers(precision, recall),
        per_class={name: _mean_or_none(precision[:, :, k, 0, -1]) for k, name in enumerate(table.class_names)},
        per_class_ap50={name: _mean_or_none(precision[0, :, k, 0, -1]) for k, name in enumerate(table.class_names)},
        images=len(table.image_ids),
        boxes=int((~table.objects.is_ignored).sum()),
    )


def _accumulate(table: EvaluationTable) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, areas, max detections) and recall (T, K, areas, max detections); -1 is undefined.

    T is 10 IoU thresholds, R 101 recalls, areas all, small, medium, large, and max detections 1, 10, 100.
    """
    library = require("faster_coco_eval", "train")
    images = [{"id": number} for number in range(len(table.image_ids))]
    categories = [{"id": number} for number in range(len(table.class_names))]
    if not images or not categories:
        return np.full((10, 101, len(categories), 4, 3), -1.0), np.full((10, len(categories), 4, 3), -1.0)
    annotations, detections = _rows(table.objects), _rows(table.detections)
    truth = library.COCO(
        {"images": images, "annotations": annotations, "categories": categories}, print_function=_silent
    )
    evaluation = library.COCOeval_faster(truth, truth.loadRes(detections), iouType="bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _rows(boxes: Boxes) -> list[dict[str, Any]]:
    """Boxes as COCO's dictionaries, images and categories by number.

    Numbered from 1: an annotation with id 0 is never matched, since the evaluation marks "no match" with 0.
    """
    columns = (boxes.images, boxes.labels, boxes.boxes_xywh, boxes.areas, boxes.scores, boxes.is_ignored)
    names = ("image_id", "category_id", "bbox", "area", "score", "iscrowd")
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(names, row, strict=True)) | {"id": number} for number, row in enumerate(values, start=1)]


def _twelve_numbers(precision: np.ndarray, recall: np.ndarray) -> dict[str, Any]:
    """The summary, by the attribute names of Metrics."""
    sizes = ("small", "medium", "large")
    return {
        "ap": _mean(precision[:, :, :, 0, -1]),
        "ap50": _mean(precision[0, :, :, 0, -1]),
        "ap75": _mean(precision[5, :, :, 0, -1]),
        **{f"ap_{size}": _mean(precision[:, :, :, area, -1]) for area, size in enumerate(sizes, start=1)},
        **{f"ar{limit}": _mean(recall[:, :, 0, index]) for index, limit in enumerate((1, 10, 100))},
        **{f"ar_{size}": _mean(recall[:, :, area, -1]) for area, size in enumerate(sizes, start=1)},
    }


def _mean(values: np.ndarray) -> float:
    """Mean over the defined values; -1 if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _mean_or_none(values: np.ndarray) -> float | None:
    mean = _mean(values)
    return None if mean == -1 else mean


def number(value: float | None) -> str:
    """A number of 0..1 to three digits; n.a. where it does not exist."""
    return "n.a." if value is None or value < 0 else f"{value:.3f}"


def _silent(*_: object) -> None:
    """Takes the library's progress messages, which tell a user nothing."""
