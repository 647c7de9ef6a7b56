"""report: the paper's comparisons, counted and measured from this code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientdet.cli.options import app, error_console, say


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.md and its pictures.")],
    latency: Annotated[str, typer.Option(help="Where models are timed: cpu, cuda or none.")] = "cpu",
    latency_up_to: Annotated[str, typer.Option(help="Costlier models than this are not timed.")] = "d2",
    weights: Annotated[
        str | None, typer.Option(help="Checkpoint whose learned fusion weights are shown; default the bundled ones.")
    ] = None,
    has_no_timing: Annotated[bool, typer.Option("--no-timing", help="Measure no times at all.")] = False,
) -> None:
    """Write the paper's comparisons as markdown with pictures: the family, feature networks, fusions, scaling.

    Everything is counted from the code, beside what was published; it takes a minute or two, and longer with timing of
    large models.

    Example: `efficientdet report --out report/`
    """
    from efficientdet.research.report import write_report

    path = write_report(
        out, latency=latency, latency_up_to=latency_up_to, weights=weights, has_timing=not has_no_timing,
        say=lambda text: error_console.print(text, style="dim", highlight=False, markup=False),
    )  # fmt: skip
    say(f"written: {path}")
