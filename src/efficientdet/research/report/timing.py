"""The measured numbers of the report: where, how long, how far apart."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from efficientdet.errors import SettingError, unknown_name
from efficientdet.family import ModelSpec
from efficientdet.network.count import count
from efficientdet.research.benchmark.hardware import Hardware
from efficientdet.research.scaling import forward_ms
from efficientdet.research.spread import Spread

DEVICES = ("cpu", "cuda", "none")


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
    hardware, threads = Hardware.read(), torch.get_num_threads()
    busy = f"; machine busy (load {hardware.load:.1f}), times are rough" if hardware.was_busy else ""
    return f"{hardware.cpu}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}{busy}"


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
