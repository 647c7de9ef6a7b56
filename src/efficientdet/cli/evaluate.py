"""evaluate: COCO AP of a detector on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.cli.options import Json, SkipMissing, app, out_console, print_json, progress_bar, takes_settings
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings


@app.command()
@takes_settings(PostprocessSettings, DetectorSettings, stored=PostprocessSettings, leave_out=["score_threshold"])
def evaluate(
    weights: Annotated[str, typer.Argument(help="Bundled model, checkpoint, exported file or released model.")],
    data: Annotated[Path, typer.Option(help="Folder of the dataset, or one annotation file.")],
    settings: dict[str, Any],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the metrics.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images that go through the network together.")] = 8,
    skip_missing: SkipMissing = False,
    as_json: Json = False,
) -> None:
    """Measure COCO AP, overall and by class, on detections with scores down to 0.001.

    Example: `efficientdet evaluate runs/1/best.safetensors --data dataset/ --split test`
    """
    from efficientdet.evaluation.evaluate import evaluate as run_evaluation
    from efficientdet.inference.detector import load

    detector = load(weights, **settings)
    with progress_bar(as_json) as progress:
        task = progress.add_task("evaluating", total=None)
        metrics = run_evaluation(
            detector,
            data,
            split=split,
            batch_size=batch_size,
            skip_missing=skip_missing,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    try:
        if out is not None:
            metrics.to_json(out)
    finally:  # what was measured is shown, even where it cannot be written
        print_json(metrics.to_dict()) if as_json else out_console.print(metrics.table())
