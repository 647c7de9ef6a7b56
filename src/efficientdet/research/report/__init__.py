"""The report: the paper's comparisons, counted and measured from this code, as markdown with figures.

`report.md` beside this file has the words; each module gives the tables and numbers of one section, by the names that
stand in braces there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from efficientdet.atomic_write import write_text
from efficientdet.errors import SettingError, require
from efficientdet.inference.hardware import Hardware
from efficientdet.research.report.family import family_parts
from efficientdet.research.report.fusions import fusions_parts
from efficientdet.research.report.networks import networks_parts
from efficientdet.research.scaling import scaling_parts
from efficientdet.research.settings import ReportSettings
from efficientdet.version import __version__


def write_report(
    out: str | Path, settings: ReportSettings | None = None, *, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Write `report.md` and its figures (PNG, SVG) into a folder: takes one or two minutes.

    Args:
        out: the folder; made if missing, files of an earlier report in it are replaced.
        settings: what to measure and show; the defaults when None.
        say: called with a line on each part that begins.

    Returns:
        The path of `report.md`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SettingError: times are to be measured on cuda, and there is no GPU.
    """
    settings = settings or ReportSettings()
    require("matplotlib", "report")
    folder, device, machine = Path(out), settings.device if settings.timing else None, "not measured"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("device is cuda, and PyTorch finds no GPU; choose cpu")
    if device is not None:
        machine = f"measured on {Hardware.read(device)}; torch {torch.__version__}, threads: {torch.get_num_threads()}"
    parts = {"version": __version__, "date": str(date.today()), "machine": machine}
    say("counting the family")
    parts |= family_parts(folder)
    say("counting feature networks")
    parts |= networks_parts(folder)
    say("comparing fusions")
    parts |= fusions_parts(device)
    say("counting scaled models")
    parts |= scaling_parts(folder)
    text = Path(__file__).with_name("report.md").read_text(encoding="utf-8")
    write_text(folder / "report.md", text.format(**parts))
    return folder / "report.md"
