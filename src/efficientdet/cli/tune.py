"""tune: the settings with the best AP, found by a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.cli.options import Json, app, print_facts, print_json, say, takes_settings, tell_progress
from efficientdet.training.config import TrainConfig
from efficientdet.training.tune import TuneSettings


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
    from efficientdet.training.tune import tune as run_study

    found = run_study(model, data, out, say=tell_progress, recipe=recipe, **settings)
    if as_json:
        print_json({"settings": found.settings, "best_ap": found.best_ap, "trials": found.trials})
        return
    print_facts(f"AP {found.best_ap:.3f} in the best of {found.trials} trials", found.settings)
    say(found.command)
