"""The measured numbers of the report: where, how long, how far apart."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from efficientdet.analysis.models import count
from efficientdet.analysis.scale import forward_ms
from efficientdet.errors import SettingError, unknown_name
from efficientdet.family import ModelSpec

DEVICES = ("cpu", "cuda", "none")
# Load a core from which measured times are not to be trusted.
BUSY = 0.3


class Spread(NamedTuple):
    """Median, least and largest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one measurement."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        """`12.3 (11.9-14)`."""
        middle, low, high = (f"{value:.0f}" if value >= 1000 else f"{value:.4g}" for value in self)
        return f"{middle} ({low}-{high})"


def check_device(device: str) -> None:
    """Refuse a device that nothing can be measured on.

    Raises:
        UnknownNameError: it is none of `DEVICES`.
        SettingError: cuda is asked for and not there.
    """
    if device not in DEVICES:
        raise unknown_name("place to measure latency", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("latency is wanted on cuda, and torch finds no GPU; use cpu or none")


def machine(device: str) -> str:
    """Where times are measured, in one line: the chip, threads, torch's version, and how busy the machine is."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}{_business()}"


def _business() -> str:
    """A warning where others were at work before anything was measured."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    is_busy = load > BUSY * (os.cpu_count() or 1)
    return f"; machine busy (load {load:.1f}), times are rough" if is_busy else ""


def measure(specs: Iterable[ModelSpec], device: str, largest: ModelSpec) -> dict[str, Spread]:
    """Time a forward pass of every model that costs no more multiply-adds than the largest one to be measured.

    Args:
        specs: the models.
        device: `cpu` or `cuda`.
        largest: costlier ones are left out.

    Returns:
        Milliseconds by name; see `forward_ms`.
    """
    limit = count(largest)[1]
    return {spec.name: Spread.of(forward_ms(spec, device)) for spec in specs if count(spec)[1] <= limit}
