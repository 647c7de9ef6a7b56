"""ablate: feature networks and fusions, trained on one dataset and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.cli.options import Json, app, print_json, print_table, say, takes_settings, tell_progress
from efficientdet.research.settings import AblationSettings
from efficientdet.training.config import TrainConfig


@app.command()
@takes_settings(
    AblationSettings,
    TrainConfig,
    leave_out=["weights", "feature_network", "fusion", "seed", "evaluate_every", "devices", "minutes"],
)
def ablate(
    model: Annotated[str, typer.Argument(help="Model whose backbone, width, depth and heads every trial has.")],
    data: Annotated[Path, typer.Option(help="Folder with train and val annotations.")],
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the trials and of the table.")] = Path("ablation"),
    as_json: Json = False,
) -> None:
    """Train feature networks and fusions with the same settings and seeds, and print a table that compares them.

    Run it again to continue a stopped ablation.

    Example: `efficientdet ablate lite0 --data dataset/ --feature-networks bifpn,fpn --fusions fast --epochs 20`
    """
    from efficientdet.research.ablation import ablate as run_ablation
    from efficientdet.research.ablation import shown_rows

    rows = run_ablation(model, data, out, say=tell_progress, **settings)
    if as_json:
        print_json(rows)
        return
    print_table(f"trained on {data}", shown_rows(rows), ("feature network", "fusion"))
    say(f"written: {out}/ablation.md")
