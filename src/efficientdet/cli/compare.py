"""compare: two detectors on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientdet.cli.options import Json, SkipMissing, app, print_json, print_table, say


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
