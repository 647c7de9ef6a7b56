"""Where something was measured: processor, cores, versions, and whether other programs were running."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
# Rounds of its loop that a waiting OpenMP thread spins before it sleeps; by default 300,000.
SPINS = 1000
# Seconds between two looks at what other processes use: the system counts in hundredths.
BETWEEN_LOOKS = 0.1


def thread_count() -> int:
    """Threads for the arithmetic: torch's choice where it is loaded, else OMP_NUM_THREADS or the cores there are."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else core_count()


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def on_cores(most: int) -> Iterator[None]:
    """Run the torch operations of this thread, and of no other, on at most that many cores while the block lasts.

    `torch.set_num_threads` would change other threads too. Where torch has no OpenMP, nothing changes.
    """
    if thread_count() <= most:
        yield
        return
    before = [(library, library.num_threads) for library in _openmp()]
    try:
        for library, _ in before:
            library.set_num_threads(most)
        yield
    finally:
        for library, number in before:
            library.set_num_threads(number)


@functools.cache
def _openmp() -> list[Any]:
    """The OpenMP libraries that this process has loaded, torch's among them."""
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="openmp").lib_controllers)


class FreeCores:
    """How many of its cores other processes leave to this one.

    A parallel operation of torch ends when the last of its threads has had a core, and those that wait for it keep
    theirs busy for milliseconds. Where another process takes one core of two, a network of hundreds of operations so
    takes ten times as long on two threads as on one.
    """

    def __init__(self) -> None:
        self._count = core_count()
        self._last = _times()

    def __call__(self) -> int:
        """At least 1; all of them where the system does not tell (it is not Linux)."""
        now = _times()
        if now is None or self._last is None or now[0] - self._last[0] < BETWEEN_LOOKS:
            return self._count
        seconds, busy, own = (after - before for after, before in zip(now, self._last, strict=True))
        self._last, self._count = now, max(1, core_count() - max(0, round((busy - own) / seconds)))
        return self._count


def spin_briefly_if_busy() -> None:
    """Where other processes compute too, let threads that wait for a parallel operation of torch to end sleep soon.

    Otherwise they spin for milliseconds, on the core that the process needs that holds up the thread they wait for: a
    training step then took up to 18 times as long. Alone they are faster for it, so it is left as it is, and so is what
    the environment says. GNU's OpenMP, torch's on Linux, reads this as torch is imported; afterwards it has no effect.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    free = FreeCores()
    time.sleep(1.5 * BETWEEN_LOOKS)
    if free() < core_count():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def _times() -> tuple[float, float, float] | None:
    """Seconds on the clock, and those that this process's cores have been busy: for all processes, for this one."""
    try:
        text = Path("/proc/stat").read_text()
        cores = [f"cpu{core}" for core in os.sched_getaffinity(0)]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    columns = {name: list(map(int, numbers)) for name, *numbers in map(str.split, text.splitlines()) if name in cores}
    # user, nice, system, idle, iowait, irq, softirq, steal; the rest is counted among the first two.
    busy = sum(sum(numbers[:3]) + sum(numbers[5:8]) for numbers in columns.values())
    return time.monotonic(), busy / ticks, time.process_time()


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
