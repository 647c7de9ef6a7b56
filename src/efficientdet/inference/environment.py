"""What a bug report needs to know of an installation: `efficientdet info --environment`."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from typing import Any

import torch

from efficientdet.errors import EfficientDetError
from efficientdet.inference.engines.engine import choose_backend, find_device
from efficientdet.inference.hardware import LIBRARIES, Hardware
from efficientdet.inference.settings import OFFERED
from efficientdet.version import __version__


def environment() -> dict[str, Any]:
    """What a bug report needs: versions, the machine, devices, and which backends can run here. No names or paths.

    Returns:
        Plain types, ready for JSON: `system`, `processor`, `devices`, `backends` (`ready`, or why not, by name),
        `versions` and `missing` (of the libraries that this package and its extras ask for).
    """
    hardware = Hardware.read()
    gpus = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    backends = {}
    for name in OFFERED:
        backends[name] = "ready"
        device = find_device("auto" if name == "tensorrt" else "cpu")
        try:
            choose_backend(name, "fp32", device)
        except EfficientDetError as error:
            backends[name] = str(error)
    versions: dict[str, str] = {"efficientdet": __version__, "python": platform.python_version()}
    missing = []
    for name in _wanted_libraries():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return {
        "system": platform.platform(),
        "processor": f"{hardware.cpu} ({', '.join(hardware.flags)}), {hardware.cores} cores",
        "memory": f"{hardware.memory_gib:.0f} GiB" if hardware.memory_gib else None,
        "devices": ["cpu", *gpus, *mps],
        "backends": backends,
        "backend auto": choose_backend("auto", "fp32", find_device("auto")),
        "versions": versions,
        "missing": missing,
    }


def _wanted_libraries() -> list[str]:
    """What the installed package and its extras ask for, by name."""
    try:
        wanted = importlib.metadata.requires("efficientdet") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        wanted = list(LIBRARIES)
    names = dict.fromkeys(match[0] for text in wanted if (match := re.match(r"[\w.-]+", text)))
    return [name for name in names if name != "efficientdet"]
