"""The page that a training leaves: its curves, and the evaluation of its best checkpoint."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from efficientdet.data.records import Records
from efficientdet.evaluation.coco_ap import Metrics
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.evaluation.matching import EvaluationTable, match
from efficientdet.evaluation.report import summarize, write_report
from efficientdet.evaluation.report_page import explain_command
from efficientdet.training.run_folder import TrainingRun

RUN_PAGE = "report.html"


def write_run_page(run: TrainingRun, records: Records | None, best: tuple[Metrics, EvaluationTable] | None) -> None:
    """Write `report.html` into the folder of a run.

    Args:
        run: the run.
        records: its validation split; None for none.
        best: the evaluation behind its best checkpoint; None where that is older than the last resume, which is then
            evaluated again.
    """
    metrics = None
    if records is not None:
        metrics = dataclasses.replace(best[0], matches=match(best[1])) if best else evaluate(run.best, records)
    write_report(
        run.folder / RUN_PAGE,
        None if metrics is None else summarize(metrics),
        metrics,
        records,
        explain=explain_command(run.best),
        history=read_history(run.folder / "log" / "metrics.csv"),
    )


def read_history(path: Path) -> list[dict[str, float]]:
    """What was logged as CSV, by epoch, from 1: the mean over its rows. Empty without a log."""
    if not path.is_file():
        return []
    epochs: dict[int, dict[str, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = epochs.setdefault(int(row.pop("epoch")) + 1, {})
            for name, value in row.items():
                if value:
                    values.setdefault(name, []).append(float(value))
    return [
        {"epoch": epoch, **{name: sum(values) / len(values) for name, values in logged.items()}}
        for epoch, logged in sorted(epochs.items())
    ]
