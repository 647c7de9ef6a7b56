"""Keep torch on one core for a while: its idle threads would take the other cores from a network in another runtime."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# OpenMP's runtimes on Linux (GNU, Intel, LLVM), macOS and Windows.
RUNTIMES = ("libgomp*", "libiomp5*", "libomp*")
MAPS = Path("/proc/self/maps")


@contextmanager
def on_one_core() -> Iterator[None]:
    """While this lasts, torch's operations of this thread, and of no other, run on one core.

    After each parallel operation OpenMP's threads wait for the next one, busy, not asleep, for some milliseconds. For
    a few small operations between two runs of a network that is a bad bargain. `torch.set_num_threads` would change
    other threads too; where OpenMP's own function for this cannot be found, nothing changes.
    """
    threads = torch.get_num_threads()
    runtime = _runtime() if threads > 1 else None
    if runtime is None:
        yield
        return
    runtime.omp_set_num_threads(1)
    try:
        yield
    finally:
        runtime.omp_set_num_threads(threads)


@functools.cache
def _runtime() -> Any:
    """The library that torch asks how many threads there are; None if that cannot be found."""
    threads = torch.get_num_threads()
    for path in _candidates():
        try:
            runtime = ctypes.CDLL(path)
            runtime.omp_set_num_threads(1)
        except (OSError, AttributeError):
            continue
        is_torchs = torch.get_num_threads() == 1
        runtime.omp_set_num_threads(threads)
        if is_torchs:
            return runtime
    return None


def _candidates() -> list[str]:
    """Paths of OpenMP runtimes: those beside torch's libraries, and on Linux all that the process has loaded."""
    folder = Path(torch.__file__).parent / "lib"
    found = [str(path) for pattern in RUNTIMES for path in sorted(folder.glob(pattern))]
    if MAPS.exists():
        loaded = {line.split(maxsplit=5)[-1].strip() for line in MAPS.read_text().splitlines() if ".so" in line}
        found += sorted(path for path in loaded if any(Path(path).match(pattern) for pattern in RUNTIMES))
    return list(dict.fromkeys(found))
