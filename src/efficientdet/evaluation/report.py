"""The report of an evaluation: numbers with intervals, curves, confusion and mistakes, as JSON, markdown or HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.atomic_write import write_json, write_text
from efficientdet.data.records import Records
from efficientdet.errors import DataError, SettingError
from efficientdet.evaluation.coco_ap import Metrics
from efficientdet.evaluation.curves import CALIBRATION_BINS, calibration, class_ap, precision_recall
from efficientdet.evaluation.matching import Matches
from efficientdet.evaluation.mistakes import KINDS, confusion_matrix, cost_of_mistakes, find_mistakes
from efficientdet.evaluation.numbers import RESAMPLES, measure, to_markdown
from efficientdet.evaluation.operating_points import (
    OperatingPoint,
    choose_by_class,
    choose_threshold,
    halves,
    thresholds_of,
)
from efficientdet.evaluation.report_page import Explain, Gallery, write_page
from efficientdet.evaluation.settings import ThresholdSettings
from efficientdet.text import printable

# Points of a curve that are kept: enough to draw it.
CURVE_POINTS = 200
# Score threshold of the confusion matrix and of the gallery where none can be chosen.
DEFAULT_THRESHOLD = 0.3
DEFINITIONS = {
    "interval": f"95 % of the values that {RESAMPLES} resamplings of the images give (percentile bootstrap)",
    "threshold": "score threshold chosen on half of the images for the aim; what it gives is measured on the others",
    "mistakes": "kinds of TIDE (Bolya et al. 2020), and the AP50 that mending all of a kind would add",
    "confusion": "rows are annotated classes, columns predicted ones, the last of each is background; IoU 0.50",
    "calibration": f"mean score and share of right detections, in {CALIBRATION_BINS} bins of the score",
}


def summarize(metrics: Metrics, settings: ThresholdSettings | None = None) -> dict[str, Any]:
    """All that an evaluation tells, as plain types ready for JSON; numbers that do not exist are None.

    `docs/report.schema.json` describes every field.

    Args:
        metrics: of `evaluate`.
        settings: what the score thresholds are chosen for; None for the best F1.

    Returns:
        `images`, `boxes`, `numbers` (label, value, interval and definition of each), `threshold`, `classes` (with the
        precision-recall curves), `mistakes`, `confusion`, `calibration` and `definitions`.

    Raises:
        SettingError: the metrics hold no matches; those of a training run do not.
        DataError: no score threshold reaches the aim of the settings.
    """
    matches = matches_of(metrics)
    settings = settings or ThresholdSettings()
    overall = _overall(matches, settings)
    points = None if overall is None else choose_by_class(matches, settings, overall)
    chosen = None if points is None else thresholds_of(points)
    used = np.full(len(matches.class_names), DEFAULT_THRESHOLD) if chosen is None else chosen
    mistakes = find_mistakes(matches)
    counts, costs = mistakes.count_by_kind(), cost_of_mistakes(matches, mistakes)
    reliability = calibration(matches)
    content = {
        "images": metrics.images,
        "boxes": metrics.boxes,
        "numbers": measure(metrics, matches, chosen, halves(len(matches.image_ids))[1]),
        "threshold": _threshold(matches, settings, overall, points),
        "classes": _classes(matches, points),
        "mistakes": {kind: {"count": counts[kind], "ap50_gain": costs[kind], "meaning": KINDS[kind]} for kind in KINDS},
        "confusion": {
            "score_thresholds": used.tolist(),
            "names": [*matches.class_names, "background"],
            "counts": confusion_matrix(matches, used).tolist(),
        },
        "calibration": {
            "mean_scores": reliability.mean_scores.tolist(),
            "precisions": reliability.precisions.tolist(),
            "counts": reliability.counts.astype(np.int64).tolist(),
        },
        "definitions": DEFINITIONS,
    }
    result: dict[str, Any] = _without_nan(content)
    return result


def matches_of(metrics: Metrics) -> Matches:
    """The matches of an evaluation.

    Raises:
        SettingError: the metrics hold none.
    """
    if metrics.matches is None:
        raise SettingError("these metrics hold no matches; take those that `evaluate` returns")
    return metrics.matches


def _overall(matches: Matches, settings: ThresholdSettings) -> OperatingPoint | None:
    """The operating point; None where there are too few images to choose one, and none was asked for."""
    try:
        return choose_threshold(matches, settings)
    except DataError:
        if settings != ThresholdSettings():
            raise
        return None


def _threshold(
    matches: Matches, settings: ThresholdSettings, overall: OperatingPoint | None, points: list[OperatingPoint] | None
) -> dict[str, Any] | None:
    if overall is None or points is None:
        return None
    names = matches.class_names
    by_class = {name: point.score_threshold for name, point in zip(names, points, strict=True)}
    return {
        "aim": settings.aim,
        "score_threshold": overall.score_threshold,
        "by_class": by_class if settings.by_class else None,
        "without_own": [
            name for name, point in zip(names, points, strict=True) if settings.by_class and not point.is_own
        ],
    }


def _classes(matches: Matches, points: list[OperatingPoint] | None) -> list[dict[str, Any]]:
    ap, ap50, objects = class_ap(matches), class_ap(matches, 0.5), matches.objects_by_class()
    rows = []
    for label, name in enumerate(matches.class_names):
        curve = precision_recall(matches, label)
        kept = np.unique(np.linspace(0, len(curve.scores) - 1, CURVE_POINTS).astype(int))[: len(curve.scores)]
        columns = {"scores": curve.scores, "precision": curve.precision, "recall": curve.recall}
        rows.append(
            {
                "name": name,
                "objects": int(objects[label]),
                "ap": ap[label],
                "ap50": ap50[label],
                "score_threshold": points[label].score_threshold if points else None,
                **(points[label].checked._asdict() if points else dict.fromkeys(("precision", "recall", "f1"))),
                "curve": {column: values[kept].tolist() for column, values in columns.items()},
            }
        )
    return rows


def _without_nan(value: Any) -> Any:
    """The same with None for numbers that are not finite, and lists for tuples."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


ENDINGS = (".json", ".md", ".html")


def check_report_name(path: Path) -> None:
    """Check the end of a report's name.

    Raises:
        SettingError: it is none of those that `write_report` knows.
    """
    if path.suffix not in ENDINGS:
        raise SettingError(f"{path}: a report's name ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")


def write_report(
    path: str | Path,
    report: dict[str, Any] | None,
    metrics: Metrics | None,
    records: Records | None,
    *,
    explain: Explain | None = None,
    history: Sequence[dict[str, float]] = (),
) -> None:
    """Write a report, whole or not at all; the name's end says how.

    Args:
        path: ending in .json, .md or .html.
        report: of `summarize`; None, on a page, for a run without a validation split.
        metrics: of the same evaluation.
        records: its images, for the gallery of the page.
        explain: the command that explains a detection of an image file, by its number; None for none.
        history: of a training, for the page: `epoch`, and what was measured after it.

    Raises:
        SettingError: the name has another end, or the metrics hold no matches.
    """
    path = Path(path)
    check_report_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        gallery = None if metrics is None or records is None else Gallery(matches_of(metrics), records, explain)
        title = f"Evaluation on {printable(records.source.name, 80)}" if records is not None else "Evaluation"
        title = f"Training run {printable(path.parent.resolve().name, 80)}" if history else title
        write_text(path, write_page(title, report, gallery, history))
    elif report is None:
        raise SettingError(f"{path}: there is no evaluation to write")
    elif path.suffix == ".json":
        write_json(path, report)
    else:
        write_text(path, to_markdown(report))
