"""The report: the paper's comparisons, counted and measured from this code, as markdown with pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

from efficientdet.atomic_write import write_text
from efficientdet.errors import SettingError, unknown_name
from efficientdet.family import MODELS, ModelSpec
from efficientdet.research.report import figures
from efficientdet.research.report.family_section import family_section
from efficientdet.research.report.fusions import fusions_section
from efficientdet.research.report.networks import SCALES, networks_section
from efficientdet.research.report.scaling import scaling_section
from efficientdet.research.report.timing import check_device, machine, measure
from efficientdet.version import __version__
from efficientdet.weights.names import find_weights

# What a laptop measures in a few seconds.
DEFAULT_LARGEST = "d2"


def write_report(
    out: str | Path, *, latency: str = "cpu", latency_up_to: str = DEFAULT_LARGEST, weights: str | None = None,
    has_timing: bool = True, models: Sequence[str] = tuple(MODELS), scales: Mapping[str, ModelSpec] = SCALES,
    largest_phi: int = 6, say: Callable[[str], None] = lambda text: None,
) -> Path:  # fmt: skip
    """Write `report.md` and its pictures (PNG and SVG) into a folder.

    Args:
        out: the folder; made if missing, files of an earlier report in it are replaced.
        latency: where the family is timed: `cpu`, `cuda`, or `none`. Fusions are timed there too (CPU for `none`).
        latency_up_to: models of the family that cost more than this one are not timed.
        weights: checkpoint, by name or file, whose learned fusion weights are shown; None for those in the package.
        has_timing: False leaves out every measurement of time.
        models: names of released models for the first section.
        scales: models to count the feature networks at, by what to call them.
        largest_phi: how far compound scaling is counted, 2 to 6.
        say: is told what is being done.

    Returns:
        The path of `report.md`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UnknownNameError: a model, the weights, or the place to measure is not known.
        SettingError: cuda is asked for and not there, or largest_phi is outside its range.
    """
    figures.check_matplotlib()
    check_device(latency)
    for name in (latency_up_to, *models):
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    if not 2 <= largest_phi <= 6:
        raise SettingError(f"largest_phi is {largest_phi}; the formula is counted up to phi 2 to 6")
    if weights is not None:
        find_weights(weights)  # says now, rather than after minutes, that there are none
    folder = Path(out)
    device = "cpu" if latency == "none" else latency
    where = machine(device)
    specs = [MODELS[name] for name in models]
    latencies = None
    if has_timing and latency != "none":
        say(f"timing models up to {latency_up_to} on {device}")
        latencies = measure(specs, device, MODELS[latency_up_to])
    say("counting the family")
    sections = [_head(where if has_timing else None)]
    sections.append(family_section(folder, specs, latencies, where, latency_up_to))
    say("counting feature networks, some tens of models")
    sections.append(networks_section(folder, scales))
    say("fusions")
    sections.append(fusions_section(folder, weights, device if has_timing else None, where))
    say("counting scaled models")
    sections.append(scaling_section(folder, largest_phi))
    path = folder / "report.md"
    write_text(path, "\n".join(sections))
    return path


def _head(where: str | None) -> str:
    measured = f"Times were measured on {where}. " if where else "No times were measured. "
    return (
        f"# EfficientDet, counted and measured\n\nWritten by `efficientdet report`, efficientdet {__version__}, "
        f"{date.today()}. {measured}What is called published is from arXiv 1911.09070 v7 and google/automl and was "
        "neither counted nor measured here.\n"
    )
