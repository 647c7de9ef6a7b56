"""benchmark: how fast models run here, and beside a peer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from efficientdet.atomic_write import write_json
from efficientdet.cli.options import Json, app, complain, error_console, print_table, say
from efficientdet.errors import SettingError


@app.command()
def benchmark(
    models: Annotated[
        list[str], typer.Argument(help="Bundled names, checkpoints, exported files; or d0, lite0, ...: random weights.")
    ],
    backends: Annotated[
        str, typer.Option(help="auto, eager, compile, onnxruntime, openvino, tensorrt; several between commas.")
    ] = "auto",
    batch_sizes: Annotated[str, typer.Option(help="Pictures at a time, such as 1,8.")] = "1",
    precisions: Annotated[str, typer.Option(help="fp32, bf16, fp16; several between commas.")] = "fp32",
    image_size: Annotated[int | None, typer.Option(help="Side of the input; default each model's own.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of pictures; default a sample, 640x480.")] = None,
    rounds: Annotated[int, typer.Option(help="How often the sides take turns.")] = 7,
    iterations: Annotated[int, typer.Option(help="Predictions of a side in a round.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Threads of each side; default torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer: Annotated[
        list[str] | None, typer.Option(help="effdet, or an ONNX file: measured in the same rounds. Can be repeated.")
    ] = None,
    peer_python: Annotated[
        Path | None, typer.Option(help="A python that has effdet; default $EFFICIENTDET_PEER_PYTHON or .bench/effdet.")
    ] = None,
    score_threshold: Annotated[float, typer.Option(help="Lower scores are dropped.")] = 0.05,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write all that was measured here, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Measure models from file to boxes: each backend, precision and batch size in a process of its own, in turns.

    The table says where the time goes, and in `x floor` how many times longer the network takes than its multiply-adds
    at the speed of a large matrix product, or its data at the speed of a large copy, whichever is longer.

    Example: `efficientdet benchmark people --backends eager,onnxruntime --batch-sizes 1,8`
    """
    from efficientdet.research.benchmark.run import BenchmarkSettings
    from efficientdet.research.benchmark.run import benchmark as measure

    settings = BenchmarkSettings(
        models=tuple(models), backends=_names(backends), precisions=_names(precisions),
        batch_sizes=_numbers(batch_sizes), image_size=image_size, pictures=None if pictures is None else str(pictures),
        rounds=rounds, iterations=iterations, threads=threads, device=device, peers=tuple(peer or ()),
        peer_python=None if peer_python is None else str(peer_python), score_threshold=score_threshold,
    )  # fmt: skip
    found = measure(settings, lambda text: error_console.print(text, style="dim", highlight=False, markup=False))
    if out is not None:
        write_json(out, found.to_dict())
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        if found.rows:
            print_table("milliseconds a batch", (row.table_row() for row in found.rows), ("model", "backend"))
        if found.ratios:
            title = "peer's time over ours, round by round: above 1, this package is faster"
            print_table(title, (ratio.table_row() for ratio in found.ratios), ("model", "ours", "peer"))
        hardware = found.hardware
        versions = ", ".join(f"{name} {version}" for name, version in hardware.versions.items())
        say(f"on {hardware.describe().replace('**', '')}; {versions}")
        for note in found.notes:
            say(note)
    for failure in found.failures:
        complain(f"failed: {failure}")
    if found.failures or not found.rows:
        raise typer.Exit(1)


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(name) for name in _names(text))
    except ValueError:
        raise SettingError(f"--batch-sizes {text}: whole numbers between commas, such as 1,8") from None
