"""The report of an evaluation: numbers with intervals, curves, confusion and mistakes, as JSON, markdown or HTML."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from efficientdet.atomic_write import write_json, write_text
from efficientdet.data.records import Records
from efficientdet.errors import DataError, SettingError
from efficientdet.evaluation.coco_ap import Metrics, number
from efficientdet.evaluation.curves import bootstrap_interval, calibration, class_ap, mean_iou_of_hits, precision_recall
from efficientdet.evaluation.matching import Matches
from efficientdet.evaluation.mistakes import KINDS, confusion_matrix, cost_of_mistakes, find_mistakes
from efficientdet.evaluation.operating_points import choose_threshold
from efficientdet.evaluation.report_page import write_page
from efficientdet.evaluation.settings import ThresholdSettings
from efficientdet.text import in_markdown, printable

# Points of a curve that are kept: enough to draw it.
CURVE_POINTS = 200
DEFINITIONS = {
    "ap": "average precision, mean over IoU thresholds 0.50:0.05:0.95 and over classes (COCO)",
    "ap50": "the same at IoU 0.50 alone",
    "interval": "95 % of the values that 200 resamplings of the images give (percentile bootstrap)",
    "threshold": "score threshold chosen on half of the images; precision, recall and F1 at IoU 0.50 on the others",
    "mistakes": "kinds of TIDE (Bolya et al. 2020), and the AP50 that mending all of a kind would add",
    "confusion": "rows are annotated classes, columns predicted ones, the last of each is background; IoU 0.50",
    "calibration": "mean score and share of right detections by score; the error is their mean distance (ECE)",
    "mean_iou": "mean IoU of the detections that found an object at IoU 0.50",
}


def summarize(metrics: Metrics, settings: ThresholdSettings | None = None) -> dict[str, Any]:
    """All that an evaluation tells, as plain types ready for JSON; numbers that do not exist are None.

    Args:
        metrics: of `evaluate`.
        settings: what the score threshold is chosen for; None for the best F1.

    Returns:
        `metrics`, `intervals`, `threshold`, `mean_iou`, `mistakes`, `confusion`, `calibration`, `classes` (AP, number
        of objects and precision-recall curve by class) and `definitions`.

    Raises:
        SettingError: the metrics hold no matches; those of a training run do not.
        DataError: no score threshold reaches the aim of the settings.
    """
    matches = matches_of(metrics)
    threshold = _threshold(matches, settings)
    mistakes = find_mistakes(matches)
    counts, costs = mistakes.count_by_kind(), cost_of_mistakes(matches, mistakes)
    reliability = calibration(matches)
    score_threshold = threshold["score_threshold"] if threshold else 0.3
    content = {
        "metrics": metrics.to_dict(),
        "intervals": {"ap": bootstrap_interval(matches), "ap50": bootstrap_interval(matches, 0.5)},
        "threshold": threshold,
        "mean_iou": mean_iou_of_hits(matches, score_threshold),
        "mistakes": {kind: {"count": counts[kind], "ap50_gain": costs[kind], "meaning": KINDS[kind]} for kind in KINDS},
        "confusion": {
            "score_threshold": score_threshold,
            "names": [*matches.class_names, "background"],
            "counts": confusion_matrix(matches, score_threshold).tolist(),
        },
        "calibration": {
            "error": reliability.error,
            "mean_scores": reliability.mean_scores.tolist(),
            "precisions": reliability.precisions.tolist(),
            "counts": reliability.counts.tolist(),
        },
        "classes": _classes(matches),
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


def _threshold(matches: Matches, settings: ThresholdSettings | None) -> dict[str, Any] | None:
    """The operating point; None where there are too few images to choose one, and none was asked for."""
    try:
        chosen = choose_threshold(matches, settings)
    except DataError:
        if settings is not None and settings != ThresholdSettings():
            raise
        return None
    return {"score_threshold": chosen.score_threshold, **chosen.checked._asdict()}


def _classes(matches: Matches) -> list[dict[str, Any]]:
    ap, ap50, objects = class_ap(matches), class_ap(matches, 0.5), matches.objects_by_class()
    rows = []
    for label, name in enumerate(matches.class_names):
        curve = precision_recall(matches, label)
        points = np.unique(np.linspace(0, len(curve.scores) - 1, CURVE_POINTS).astype(int))[: len(curve.scores)]
        columns = {"scores": curve.scores, "precision": curve.precision, "recall": curve.recall}
        drawn = {column: values[points].tolist() for column, values in columns.items()}
        rows.append(
            {"name": name, "objects": int(objects[label]), "ap": ap[label], "ap50": ap50[label], "curve": drawn}
        )
    return rows


def _without_nan(value: Any) -> Any:
    """The same with None for numbers that are not finite, and lists for tuples."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(report: dict[str, Any]) -> str:
    """The report for a pull request.

    Args:
        report: of `summarize`.
    """
    metrics, threshold = report["metrics"], report["threshold"]
    lines = [
        "## Evaluation",
        "",
        f"{metrics['images']} images, {metrics['boxes']} boxes.",
        "",
        "| | value | 95 % interval |",
        "|---|---:|---:|",
        *(
            f"| {name.upper()} | {number(metrics[name])} | {_range(report['intervals'][name])} |"
            for name in ("ap", "ap50")
        ),
        "",
    ]
    if threshold:
        shown = ", ".join(f"{name} {number(threshold[name])}" for name in ("precision", "recall", "f1"))
        lines += [
            f"Score threshold {threshold['score_threshold']:.3f}: {shown}, on images that it was not chosen on.",
            "",
        ]
    lines += ["| class | boxes | AP | AP50 |", "|---|---:|---:|---:|"]
    lines += [
        f"| {in_markdown(row['name'])} | {row['objects']} | {number(row['ap'])} | {number(row['ap50'])} |"
        for row in report["classes"]
    ]
    lines += ["", "| mistake | count | AP50 to gain | |", "|---|---:|---:|---|"]
    lines += [
        f"| {kind} | {row['count']} | {number(row['ap50_gain'])} | {row['meaning']} |"
        for kind, row in report["mistakes"].items()
    ]
    lines += ["", *(f"- {name}: {meaning}" for name, meaning in report["definitions"].items())]
    return "\n".join(lines) + "\n"


def _range(interval: list[float | None]) -> str:
    return f"{number(interval[0])} - {number(interval[1])}"


def summary_table(report: dict[str, Any]) -> Table:
    """Mistakes by kind, for a terminal, with the intervals and the score threshold below.

    Args:
        report: of `summarize`.
    """
    threshold = report["threshold"]
    caption = [f"95 % interval of {name.upper()}: {_range(report['intervals'][name])}" for name in ("ap", "ap50")]
    if threshold:
        shown = ", ".join(f"{name} {number(threshold[name])}" for name in ("precision", "recall", "f1"))
        caption.append(f"score threshold {threshold['score_threshold']:.3f}: {shown} (on the other half of the images)")
    table = Table(title="Mistakes at IoU 0.50", caption="\n".join(caption))
    table.add_column("kind")
    for column in ("count", "AP50 to gain"):
        table.add_column(column, justify="right")
    table.add_column("meaning")
    for kind, row in report["mistakes"].items():
        table.add_row(kind, str(row["count"]), number(row["ap50_gain"]), row["meaning"])
    return table


ENDINGS = (".json", ".md", ".html")


def check_report_name(path: Path) -> None:
    """Check the end of a report's name.

    Raises:
        SettingError: it is none of those that `write_report` knows.
    """
    if path.suffix not in ENDINGS:
        raise SettingError(f"{path}: a report's name ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")


def write_report(path: str | Path, report: dict[str, Any], metrics: Metrics, records: Records) -> None:
    """Write a report, whole or not at all; the name's end says how.

    Args:
        path: ending in .json, .md or .html.
        report: of `summarize`.
        metrics: of the same evaluation.
        records: its images, for the gallery of the page.

    Raises:
        SettingError: the name has another end, or the metrics hold no matches.
    """
    path = Path(path)
    check_report_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(path, report)
    elif path.suffix == ".md":
        write_text(path, to_markdown(report))
    else:
        paths = {record.image_id: record.path for record in records.images}
        title = f"Evaluation on {printable(records.source.name, 80)}"
        write_text(path, write_page(report, matches_of(metrics), paths, title))
