"""The report: the paper's comparisons, counted and measured from this code, as markdown with figures."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from efficientdet.atomic_write import write_text
from efficientdet.errors import SettingError, require
from efficientdet.family import MODELS
from efficientdet.inference.hardware import Hardware
from efficientdet.network.count import count
from efficientdet.research.report.family import family_section
from efficientdet.research.report.fusions import fusions_section
from efficientdet.research.report.networks import networks_section
from efficientdet.research.report.scaling import scaling_section
from efficientdet.research.settings import ReportSettings
from efficientdet.research.timing import forward_ms
from efficientdet.version import __version__
from efficientdet.weights.names import find_weights


def write_report(
    out: str | Path, settings: ReportSettings | None = None, *, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Write `report.md` and its figures (PNG, SVG) into a folder: counting takes one or two minutes, timing more.

    Args:
        out: the folder; made if missing, files of an earlier report in it are replaced.
        settings: what to measure and show; the defaults when None.
        say: called with a line on each part that begins.

    Returns:
        The path of `report.md`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UnknownNameError: the weights are not known.
        SettingError: times are to be measured on cuda, and there is no GPU.
    """
    settings = settings or ReportSettings()
    require("matplotlib", "report")
    if settings.weights is not None:
        find_weights(settings.weights)
    folder, device, latencies, machine = Path(out), settings.device, {}, "not measured"
    if settings.timing:
        if device == "cuda" and not torch.cuda.is_available():
            raise SettingError("device is cuda, and PyTorch finds no GPU; choose cpu")
        threads = torch.get_num_threads()
        machine = f"measured on {Hardware.read(device)}; torch {torch.__version__}, threads: {threads}"
        say(f"timing models up to {settings.largest_timed} on {device}")
        limit = count(MODELS[settings.largest_timed])[1]
        latencies = {name: forward_ms(spec, device) for name, spec in MODELS.items() if count(spec)[1] <= limit}
    head = (
        f"# EfficientDet, counted and measured\n\nWritten by `efficientdet report`, efficientdet {__version__}, "
        f"{date.today()}. Times: {machine}. Published figures are from arXiv 1911.09070 v7 and google/automl.\n"
    )
    say("counting the family")
    sections = [head, family_section(folder, latencies)]
    say("counting feature networks")
    sections.append(networks_section(folder))
    say("comparing fusions")
    sections.append(fusions_section(folder, settings.weights, device if settings.timing else None))
    say("counting scaled models")
    sections.append(scaling_section(folder))
    write_text(folder / "report.md", "\n".join(sections))
    return folder / "report.md"
