"""evaluate: COCO AP of a detector on a dataset, its mistakes, and the score threshold to ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.cli.options import Json, SkipMissing, app, out_console, print_json, progress_bar, takes_settings
from efficientdet.evaluation.settings import ThresholdSettings
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings
from efficientdet.settings import divided


@app.command()
@takes_settings(
    ThresholdSettings, PostprocessSettings, DetectorSettings, stored=PostprocessSettings,
    leave_out=["score_threshold"],
)  # fmt: skip
def evaluate(
    weights: Annotated[str, typer.Argument(help="Bundled model, checkpoint, exported file or released model.")],
    data: Annotated[Path, typer.Option(help="Folder of the dataset, or one annotation file.")],
    settings: dict[str, Any],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the metrics.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="File for the whole report: .html, .json, or .md for a review.")
    ] = None,
    save_thresholds: Annotated[
        bool, typer.Option("--save-thresholds", help="Store the chosen score threshold in the checkpoint.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images that go through the network together.")] = 8,
    skip_missing: SkipMissing = False,
    as_json: Json = False,
) -> None:
    """Measure COCO AP, overall and by class; name the mistakes, and choose a score threshold.

    Example: `efficientdet evaluate runs/1/best.safetensors --data dataset/ --split test --report report.html`
    """
    from efficientdet.data.read_split import read_split
    from efficientdet.evaluation.evaluate import evaluate as run_evaluation
    from efficientdet.evaluation.operating_points import save_threshold
    from efficientdet.evaluation.report import check_report_name, summarize, summary_table, write_report
    from efficientdet.inference.detector import load

    if report is not None:
        check_report_name(report)
    aim, post, own = divided(settings, ThresholdSettings, PostprocessSettings, DetectorSettings)
    detector = load(weights, **post, **own)
    records = read_split(data, split, skip_missing)
    with progress_bar(as_json) as progress:
        task = progress.add_task("evaluating", total=None)
        metrics = run_evaluation(
            detector,
            records,
            batch_size=batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    summary = summarize(metrics, ThresholdSettings(**aim))
    try:
        if out is not None:
            metrics.to_json(out)
        if report is not None:
            write_report(report, summary, metrics, records)
        if save_thresholds:
            save_threshold(weights, (summary["threshold"] or {}).get("score_threshold"))
    finally:  # what was measured is shown, even where it cannot be written
        if as_json:
            print_json(metrics.to_dict())
        else:
            out_console.print(metrics.table())
            out_console.print(summary_table(summary))
