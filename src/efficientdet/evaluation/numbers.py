"""The numbers of an evaluation (name, definition, value, how far it may be chance), and the tables that show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.evaluation.coco_ap import Metrics, number
from efficientdet.evaluation.curves import Floats, calibration, iou_of_hits, resampled_ap
from efficientdet.evaluation.matching import Matches
from efficientdet.evaluation.mistakes import is_kept
from efficientdet.text import in_markdown, markdown_table, printable

RESAMPLES = 200


_SIZES = {
    "small": "an area under 32 x 32 pixels",
    "medium": "an area from 32 x 32 to 96 x 96 pixels",
    "large": "an area above 96 x 96 pixels",
}
_CHECKED = "at the score threshold and IoU 0.50, on the images that the threshold was not chosen on"


class Number(NamedTuple):
    """A number of the report.

    Attributes:
        label: its name for people.
        definition: what it is.
        is_share: whether it is between 0 and 1.
    """

    label: str
    definition: str
    is_share: bool = True


# In the order of a report; those up to the calibration error come with intervals.
NUMBERS = {
    "ap": Number("AP", "average precision, mean over IoU thresholds 0.50:0.05:0.95 and over classes (COCO)"),
    "ap50": Number("AP50", "average precision at IoU 0.50, mean over classes (COCO)"),
    "ap75": Number("AP75", "average precision at IoU 0.75, mean over classes (COCO)"),
    "voc_ap50": Number("VOC AP50", "area under the precision-recall curve at IoU 0.50, mean over classes (VOC 2010)"),
    "precision": Number("precision", f"share of the detections that are right, {_CHECKED}"),
    "recall": Number("recall", f"share of the objects that are found, {_CHECKED}"),
    "f1": Number("F1", f"harmonic mean of precision and recall, {_CHECKED}"),
    "mean_iou": Number("mean IoU", "mean IoU of the detections at or above the score threshold that found an object"),
    "calibration_error": Number(
        "calibration error", "mean distance of score and share of right detections, in ten bins of the score (ECE)"
    ),
    **{f"ap_{size}": Number(f"AP {size}", f"AP of objects with {area}") for size, area in _SIZES.items()},
    **{
        f"ar{most}": Number(f"AR{most}", f"recall with at most {most} detections of an image and class, mean as in AP")
        for most in (1, 10, 100)
    },
    **{f"ar_{size}": Number(f"AR {size}", f"AR100 of objects with {area}") for size, area in _SIZES.items()},
    "images_per_second": Number(
        "images a second", "images from file to boxes in this evaluation, on this machine", is_share=False
    ),
}


def measure(
    metrics: Metrics, matches: Matches, thresholds: Floats | None, checked: NDArray[np.bool_]
) -> dict[str, dict[str, Any]]:
    """Every number of `NUMBERS`: label, value, 95 % interval and definition; None for what does not exist.

    Args:
        metrics: of the evaluation.
        matches: of the same.
        thresholds: (K,) score threshold of each class; None if none could be chosen.
        checked: (I,) mask of the images that they were not chosen on.
    """
    weights = bootstrap_weights(len(matches.image_ids), RESAMPLES)
    once = np.ones((1, len(matches.image_ids)), np.int64)
    values = {name: float(found[0]) for name, found in _resampled(matches, once, thresholds, checked).items()}
    values |= {name: getattr(metrics, name) for name in NUMBERS if hasattr(metrics, name)}
    intervals = {name: interval(found) for name, found in _resampled(matches, weights, thresholds, checked).items()}
    return {
        name: {
            "label": one.label,
            "value": _or_none(values.get(name)),
            "interval": intervals.get(name),
            "definition": one.definition,
        }
        for name, one in NUMBERS.items()
    }


def _or_none(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) or value < 0 else float(value)


def _resampled(
    matches: Matches, weights: NDArray[np.int64], thresholds: Floats | None, checked: NDArray[np.bool_]
) -> dict[str, Floats]:
    """The headline numbers, (R,) each, on resampled images (R, I); nan for what does not exist."""
    aps = resampled_ap(matches, weights)
    found = {
        "ap": mean_of_defined(aps.mean(1)),
        "ap50": mean_of_defined(aps[:, matches.threshold_index(0.5)]),
        "ap75": mean_of_defined(aps[:, matches.threshold_index(0.75)]),
        "voc_ap50": mean_of_defined(resampled_ap(matches, weights, [0.5], "voc")[:, 0]),
        "calibration_error": calibration(matches, weights).error,
    }
    if thresholds is None:
        return found
    kept = is_kept(matches, thresholds) & ~matches.is_ignored[matches.threshold_index(0.5)]
    hits = matches.hits() & kept
    own = weights * checked
    objects = _by_image(matches, matches.objects.images[~matches.objects.is_ignored])
    right, all_kept = (_by_image(matches, matches.detections.images[rows]) for rows in (hits, kept))
    overlap = _by_image(matches, matches.detections.images[hits], iou_of_hits(matches)[hits])
    precision, recall = _ratio(own @ right, own @ all_kept), _ratio(own @ right, own @ objects)
    return found | {
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * own @ right, own @ all_kept + own @ objects),
        "mean_iou": _ratio(weights @ overlap, weights @ right),
    }


def _by_image(matches: Matches, images: NDArray[np.int64], values: Floats | None = None) -> Floats:
    return np.bincount(images, values, minlength=len(matches.image_ids)).astype(np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return ratio


def mean_of_defined(values: Floats) -> Floats:
    """(R, K) to (R,): the mean over classes that have objects; nan without any."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(1), defined.sum(1).astype(np.float64))


def bootstrap_weights(images: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """(resamples, images) how often each image is drawn when as many images are drawn with replacement."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, images, (resamples, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.int64)


def interval(values: Floats) -> tuple[float, float] | None:
    """95 % interval of resampled values (Efron's percentile bootstrap); None where they do not exist."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def text_of(name: str, value: float | None) -> str:
    """A number as text; n.a. where it does not exist."""
    return number(value) if value is None or NUMBERS[name].is_share else f"{value:.1f}"


def rows_of(numbers: Mapping[str, Mapping[str, Any]], names: Sequence[str] = tuple(NUMBERS)) -> list[dict[str, str]]:
    """A table of numbers: label, value, interval and definition as text."""
    rows = []
    for name in names:
        one = numbers[name]
        ends = [text_of(name, end) for end in one["interval"] or ()]
        rows.append(
            {
                "number": one["label"],
                "value": text_of(name, one["value"]),
                "95 % interval": " to ".join(ends) or "-",
                "definition": one["definition"],
            }
        )
    return rows


class Table(NamedTuple):
    """A table of the report, the same on a terminal, in markdown and in HTML.

    Attributes:
        anchor: its id on the page.
        title: what it shows.
        rows: text by column.
        text: columns that hold words; the others hold numbers.
        note: a line below it.
    """

    anchor: str
    title: str
    rows: list[dict[str, str]]
    text: tuple[str, ...]
    note: str = ""


def tables(report: dict[str, Any]) -> list[Table]:
    """The tables of a report of `summarize`."""
    size = f"{report['images']} images, {report['boxes']} boxes"
    classes = [
        {
            "class": printable(row["name"], 80),
            "boxes": str(row["objects"]),
            "AP": number(row["ap"]),
            "AP50": number(row["ap50"]),
            "score threshold": number(row["score_threshold"]),
            **{name: number(row[name]) for name in ("precision", "recall")},
            "F1": number(row["f1"]),
        }
        for row in report["classes"]
    ]
    mistakes = [
        {
            "kind": kind,
            "count": str(row["count"]),
            "AP50 to gain": number(row["ap50_gain"]),
            "what it is": row["meaning"],
        }
        for kind, row in report["mistakes"].items()
    ]
    return [
        Table("numbers", f"Numbers, {size}", rows_of(report["numbers"]), ("number", "definition"), _note(report)),
        Table("classes", "By class", classes, ("class",)),
        Table("mistakes", "Mistakes at IoU 0.50", mistakes, ("kind", "what it is")),
    ]


def _note(report: dict[str, Any]) -> str:
    threshold = report["threshold"]
    if threshold is None:
        return "No score threshold could be chosen: there are too few images or objects."
    if threshold["by_class"] is None:
        value = f"{threshold['score_threshold']:.3f}"
        return f"Score threshold {value}, chosen on half of the images for {threshold['aim']}."
    note = f"Score thresholds by class, chosen on half of the images for {threshold['aim']}."
    if threshold["without_own"]:
        names = ", ".join(printable(name, 80) for name in threshold["without_own"])
        note += f" Of all classes together, since they have too few objects or do not reach it: {names}."
    return note


def to_markdown(report: dict[str, Any]) -> str:
    """A report of `summarize` for a pull request."""
    parts = ["## Evaluation\n"]
    for table in tables(report):
        rows = [{name: in_markdown(cell) for name, cell in row.items()} for row in table.rows]
        parts += [f"### {table.title}\n", markdown_table(rows) if rows else "none\n"]
        parts += [f"{in_markdown(table.note)}\n"] if table.note else []
    parts.append("\n".join(f"- {name}: {meaning}" for name, meaning in report["definitions"].items()) + "\n")
    return "\n".join(parts)
