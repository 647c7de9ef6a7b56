"""report: the paper's comparisons, counted and measured from this code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.cli.options import app, say, takes_settings, tell_progress
from efficientdet.research.settings import ReportSettings


@app.command()
@takes_settings(ReportSettings)
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of report.md and its figures.")],
    settings: dict[str, Any],
) -> None:
    """Repeat the paper's comparisons: write report.md with tables and figures.

    The family beside its peers, feature networks, fusions, and compound scaling. Counting takes one or two minutes.

    Example: `efficientdet report --out report/`
    """
    from efficientdet.research.report import write_report

    say(f"written: {write_report(out, ReportSettings(**settings), say=tell_progress)}")
