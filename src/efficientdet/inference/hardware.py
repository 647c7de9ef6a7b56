"""Where something was measured: processor, cores, versions, and whether other programs were running."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Instruction sets that decide how fast a network runs.
FLAGS = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm",
)  # fmt: skip
LIBRARIES = ("efficientdet", "torch", "onnxruntime", "openvino")
# A machine counts as busy from this many runnable processes per core on.
BUSY_LOAD = 0.3


def thread_count() -> int:
    """Threads for the arithmetic: torch's choice where it is loaded, else OMP_NUM_THREADS or the cores there are."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else core_count()


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Hardware:
    """A machine, as it was before measuring.

    Attributes:
        cpu: name of the processor.
        flags: its instruction sets, those of `FLAGS`.
        cores: cores that this process may use.
        memory_gib: memory of the machine; None where the system does not tell.
        system: operating system, architecture and Python.
        gpu: name of the GPU; None for a measurement on the CPU.
        versions: versions of the installed libraries among `LIBRARIES`.
        load: mean number of runnable processes over the last minute.
    """

    cpu: str
    flags: tuple[str, ...]
    cores: int
    memory_gib: float | None
    system: str
    gpu: str | None
    versions: dict[str, str]
    load: float

    @classmethod
    def read(cls, device: str = "cpu") -> Hardware:
        """Ask the system; the GPU is named where `device` is one, or auto and there is one."""
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.exists() else ""
        name = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", text, re.MULTILINE)
        available = flags.group(1).split() if flags else []
        memory = None
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return cls(
            cpu=name.group(1).strip() if name else platform.processor() or platform.machine(),
            flags=tuple(flag for flag in FLAGS if flag in available),
            cores=core_count(),
            memory_gib=memory,
            system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            gpu=_gpu_name(device),
            versions=_versions(),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        )

    @property
    def was_busy(self) -> bool:
        """Whether other programs were running before the measurement."""
        return self.load > BUSY_LOAD * self.cores

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "flags": list(self.flags), "was_busy": self.was_busy}

    def __str__(self) -> str:
        """One line: GPU, processor and its instruction sets, cores, memory, system; without the versions."""
        gpu = f"{self.gpu}; " if self.gpu else ""
        memory = f", {self.memory_gib:.0f} GiB" if self.memory_gib else ""
        flags = f" ({', '.join(self.flags)})" if self.flags else ""
        busy = f"; the machine was busy, load {self.load:.1f}" if self.was_busy else ""
        return f"{gpu}{self.cpu}{flags}, {self.cores} cores{memory}; {self.system}{busy}"


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu_name(device: str) -> str | None:
    if device != "auto" and not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name(None if device == "auto" else device))
