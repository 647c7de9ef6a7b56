"""evaluate, compare: AP of a detector with all that follows from it, and two detectors on the same images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.cli.options import (
    Json,
    MoreWeights,
    SkipMissing,
    app,
    as_options,
    print_json,
    print_table,
    progress_bar,
    say,
    takes_settings,
)
from efficientdet.evaluation.settings import ThresholdSettings
from efficientdet.inference.settings import DetectorSettings, EnsembleSettings, PostprocessSettings
from efficientdet.settings import divided

if TYPE_CHECKING:
    from efficientdet.evaluation.coco_ap import Metrics
    from efficientdet.inference.detector import Detector
    from efficientdet.inference.ensemble import Ensemble

# Settings that `explain` has no option for: it looks into the network itself.
NOT_EXPLAINED = ("backend", "precision", "reduced_decoding")


@app.command()
@takes_settings(
    ThresholdSettings, EnsembleSettings, PostprocessSettings, DetectorSettings, stored=PostprocessSettings,
    leave_out=["score_threshold"],
)  # fmt: skip
def evaluate(
    weights: Annotated[str, typer.Argument(help="Bundled model, checkpoint, exported file or released model.")],
    data: Annotated[Path, typer.Option(help="Folder of the dataset, or one annotation file.")],
    settings: dict[str, Any],
    more_weights: MoreWeights = None,
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the metrics.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="File for the whole report: .html, .json, or .md for a review.")
    ] = None,
    save_thresholds: Annotated[
        bool, typer.Option("--save-thresholds", help="Store the chosen score thresholds in the checkpoint.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images that go through the network together.")] = 8,
    skip_missing: SkipMissing = False,
    as_json: Json = False,
) -> None:
    """Measure COCO AP, overall and by class; name the mistakes, and choose score thresholds.

    With `--flip`, `--scales` or `--ensemble` the gain in AP and the cost in time are printed too.

    Example: `efficientdet evaluate runs/1/best.safetensors --data dataset/ --split test --report report.html`
    """
    from efficientdet.data.read_split import read_split
    from efficientdet.evaluation.evaluate import evaluate as run_evaluation
    from efficientdet.evaluation.numbers import tables
    from efficientdet.evaluation.operating_points import save_thresholds as store
    from efficientdet.evaluation.report import check_report_name, summarize, write_report
    from efficientdet.evaluation.report_page import explain_command
    from efficientdet.inference.engines.exported import is_exported
    from efficientdet.inference.ensemble import Ensemble, ensemble

    if report is not None:
        check_report_name(report)
    aim, views, post, own = divided(
        settings, ThresholdSettings, EnsembleSettings, PostprocessSettings, DetectorSettings
    )
    detector = ensemble(weights, *(more_weights or ()), **views, **post, **own)
    records = read_split(data, split, skip_missing)

    def measure(one: Detector) -> Metrics:
        with progress_bar(as_json) as progress:
            task = progress.add_task("evaluating", total=None)
            return run_evaluation(
                one,
                records,
                batch_size=batch_size,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )

    metrics = measure(detector)
    summary = summarize(metrics, ThresholdSettings(**aim))
    explain = None
    if not (isinstance(detector, Ensemble) or is_exported(Path(weights))):
        options = {name: value for name, value in (post | own).items() if name not in NOT_EXPLAINED}
        explain = explain_command(weights, as_options(options))
    try:
        if out is not None:
            metrics.to_json(out)
        if report is not None:
            write_report(report, summary, metrics, records, explain=explain)
        if save_thresholds:
            store(weights, summary["threshold"])
    finally:  # what was measured is shown, even where it cannot be written
        if as_json:
            print_json(metrics.to_dict())
        else:
            for table in tables(summary):
                print_table(table.title, table.rows, table.text)
                say(table.note) if table.note else None
    if isinstance(detector, Ensemble) and not as_json:
        say(_gain(metrics, detector, measure))


def _gain(metrics: Metrics, detector: Ensemble, measure: Callable[[Detector], Metrics]) -> str:
    """What an ensemble adds to the AP of the best of its members alone, and how many times as long it takes."""
    alone = max((measure(member) for member in detector.members), key=lambda one: one.ap)
    cost = (alone.images_per_second or 0.0) / max(metrics.images_per_second or 0.0, 1e-9)
    counts = {"detector": len(detector.members), "view": len(detector.views)}
    asked = ", ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items())
    return (
        f"{asked}: AP {metrics.ap:.3f} instead of {alone.ap:.3f} ({metrics.ap - alone.ap:+.3f}), in {cost:.1f} times "
        f"the time ({metrics.images_per_second:.1f} instead of {alone.images_per_second:.1f} images a second)"
    )


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Bundled model, checkpoint, exported file or released model.")],
    second: Annotated[str, typer.Argument(help="The one that is compared with it.")],
    data: Annotated[Path, typer.Option(help="Folder of the dataset, or one annotation file.")],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    batch_size: Annotated[int, typer.Option(help="Images that go through a network together.", min=1)] = 8,
    skip_missing: SkipMissing = False,
    as_json: Json = False,
) -> None:
    """Compare two detectors: the difference of AP with its interval, classes and images that got better or worse.

    Example: `efficientdet compare runs/1/best.safetensors runs/2/best.safetensors --data dataset/`
    """
    from efficientdet.evaluation.compare import compare as run_comparison

    found = run_comparison(first, second, data, split=split, batch_size=batch_size, skip_missing=skip_missing)
    if as_json:
        print_json(found.to_dict())
        return
    print_table(f"{second} against {first}", found.rows(), ("class",))
    say("\n".join(found.notes()))
