"""benchmark: how fast models run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.atomic_write import write_json
from efficientdet.cli.options import Json, app, complain, print_json, print_table, say, takes_settings, tell_progress
from efficientdet.inference.settings import BenchmarkSettings, DetectorSettings, PostprocessSettings
from efficientdet.settings import divided


@app.command()
@takes_settings(
    BenchmarkSettings,
    DetectorSettings,
    PostprocessSettings,
    stored=PostprocessSettings,
    leave_out=["backend", "precision"],
)
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(help="Bundled models, checkpoints or exported files; d0, lite0, ... stand for random weights."),
    ],
    settings: dict[str, Any],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all that was measured.")] = None,
    as_json: Json = False,
) -> None:
    """Measure models from image file to boxes: backends, precisions and batch sizes take turns on this machine.

    The table gives the median of a batch's milliseconds and its range, and the part that each step takes. `x floor` is
    the network's time over the shortest possible on this machine: its multiply-adds at the speed of a large matrix
    product, or its data at the speed of a large copy, whichever takes longer.

    Example: `efficientdet benchmark people --backends eager,openvino --batch-sizes 1,8`
    """
    own, *options = divided(settings, BenchmarkSettings, DetectorSettings, PostprocessSettings)
    chosen = BenchmarkSettings(**own)  # checked before torch is imported
    from efficientdet.inference.benchmark import benchmark as measure

    found = measure(models, chosen, tell_progress, **options[0], **options[1])
    if out is not None:
        write_json(out, found.to_dict())
    if as_json:
        print_json(found.to_dict())
    else:
        print_table("milliseconds a batch", (row.table_row() for row in found.rows), ("model", "backend"))
        versions = ", ".join(f"{name} {version}" for name, version in found.hardware.versions.items())
        for line in (f"on {found.hardware}; {versions}", *found.notes):
            say(line)
    for failure in found.failures:
        complain(f"failed: {failure}")
    if found.failures or not found.rows:
        raise typer.Exit(1)
