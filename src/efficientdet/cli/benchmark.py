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
    layers: Annotated[
        bool,
        typer.Option("--layers", help="The time of each layer of the network in openvino and onnxruntime instead."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all that was measured.")] = None,
    as_json: Json = False,
) -> None:
    """Measure models from image file to boxes: backends, precisions and batch sizes take turns on this machine.

    The table gives the median of a batch's milliseconds and its range, and the part that each step takes. `x floor` is
    the network's time over the shortest possible on this machine: its multiply-adds at the speed of a large matrix
    product, or its data at the speed of a large copy, whichever takes longer. `--layers` compares each layer with its
    own floor, at batch 1, and sums them by part of the network, kind and size of the map.

    Example: `efficientdet benchmark people --backends eager,openvino --batch-sizes 1,8`
    """
    own, *options = divided(settings, BenchmarkSettings, DetectorSettings, PostprocessSettings)
    chosen = BenchmarkSettings(**own)  # checked before torch is imported
    if layers:
        _print_layers(models, chosen, {**options[0], **options[1]}, out, as_json)
        return
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


def _print_layers(
    models: list[str], settings: BenchmarkSettings, options: dict[str, Any], out: Path | None, as_json: bool
) -> None:
    from efficientdet.inference.layers import GROUPS, SHOWN_LAYERS, time_layers

    found = time_layers(models, settings, **options)
    content = [times.to_dict() for times in found]
    if out is not None:
        write_json(out, content)
    if as_json:
        print_json(content)
        return
    for times in found:
        title = f"{times.model}, {times.engine}, {'x'.join(map(str, times.input_size))}, ms by"
        for group in GROUPS:
            print_table(f"{title} {group}", map(_rounded, times.sums(group)), (group,))
        slowest = sorted(times.layers, key=lambda layer: -layer.ms)[:SHOWN_LAYERS]
        print_table(
            f"{title} layer, the slowest", (_rounded(layer.to_dict()) for layer in slowest), ("module", "kind", "map")
        )
        say(f"on {times.hardware}")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    names = {"arithmetic_ms": "arithmetic", "memory_ms": "memory", "over_floor": "x floor"}
    digits = {"over_floor": 1}
    return {
        names.get(name, name): f"{value:.{digits.get(name, 2)}f}" if isinstance(value, float) else value
        for name, value in row.items()
        if name != "multiply_adds"
    }
