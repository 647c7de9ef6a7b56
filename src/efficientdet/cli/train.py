"""train, tune: a detector from a dataset, and a search for settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.cli.options import Json, app, print_facts, print_json, print_table, say, takes_settings, tell_progress
from efficientdet.training.config import TrainConfig
from efficientdet.training.tune import TuneSettings


@app.command()
@takes_settings(TrainConfig)
def train(
    model: Annotated[str, typer.Argument(help="d0-d7x, lite0-lite4; see `efficientdet models`.")],
    data: Annotated[Path, typer.Option(help="Dataset: its folder, data.yaml, or a COCO, CSV or parquet file.")],
    settings: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; by default the next free runs/N.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Settings that go together: modern, which are the defaults, or paper.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, with its settings, from its last saved step.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a detector on a dataset; keeps the best and the last checkpoint.

    Ctrl-C and SIGTERM end the run after the current step, with its state saved: continue it with --resume.

    Example: `efficientdet train lite0 --data dataset/ --weights people --epochs 30`
    """
    from efficientdet.inference.hardware import spin_briefly_if_busy

    spin_briefly_if_busy()  # before torch is imported
    from efficientdet.training.processes import find_group
    from efficientdet.training.run import train as run_training

    run = run_training(model, data, out=out, resume=resume, quiet=as_json, recipe=recipe, **settings)
    if find_group().rank > 0:
        return  # the first process prints
    if as_json:
        print_json({"best": str(run.best), "last": str(run.last), **run.report})
        return
    if run.metrics is not None:
        size = f"{run.metrics.images} images, {run.metrics.boxes} boxes"
        print_table(f"COCO AP on {size}", run.metrics.rows(), ("class",))
    if run.report["skipped_steps"]:
        say(f"steps skipped: {len(run.report['skipped_steps'])}; see {run.folder}/report.json")
    if run.report["best_epoch"] is not None:
        say(f"best: AP {run.report['best_ap']:.3f} after epoch {run.report['best_epoch']}")
    say(f"report: {run.folder}/report.html")
    say(f"best checkpoint: {run.best}")


@app.command()
@takes_settings(TuneSettings, TrainConfig, leave_out=["devices"])
def tune(
    model: Annotated[str, typer.Argument(help="d0-d7x, lite0-lite4; see `efficientdet models`.")],
    data: Annotated[Path, typer.Option(help="Folder with train and val annotations.")],
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study and of its trials.")] = Path("tuning"),
    recipe: Annotated[str | None, typer.Option(help="Settings that go together: modern or paper.")] = None,
    as_json: Json = False,
) -> None:
    """Seek learning rate, weight decay, backbone rate and scale jitter; a setting that is given is not sought.

    Run it again to continue a stopped study, or with more trials to extend it.

    Example: `efficientdet tune lite0 --data dataset/ --weights people --epochs 10 --trials 30`
    """
    from efficientdet.inference.hardware import spin_briefly_if_busy

    spin_briefly_if_busy()  # before torch is imported
    from efficientdet.training.tune import tune as run_study

    found = run_study(model, data, out, say=tell_progress, recipe=recipe, **settings)
    if as_json:
        print_json({"settings": found.settings, "best_ap": found.best_ap, "trials": found.trials})
        return
    print_facts(f"AP {found.best_ap:.3f} in the best of {found.trials} trials", found.settings)
    say(found.command)
