"""Run a few torch operations on one core, so that torch's idle threads leave the others to the network's runtime."""

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
    """Run the torch operations of this thread, and of no other, on one core while the block lasts.

    After each parallel operation OpenMP's threads spin for some milliseconds in case another one follows. Between two
    runs of a network in OpenVINO or ONNX Runtime that takes more time than a few small operations gain.
    `torch.set_num_threads` would change other threads too. If OpenMP's own function is not found, nothing changes.
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
    """The OpenMP library that torch uses; None if it is not found."""
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
    """Paths of OpenMP libraries: those beside torch's, and on Linux all that the process has loaded."""
    folder = Path(torch.__file__).parent / "lib"
    found = [str(path) for pattern in RUNTIMES for path in sorted(folder.glob(pattern))]
    if MAPS.exists():
        loaded = {line.split(maxsplit=5)[-1].strip() for line in MAPS.read_text().splitlines() if ".so" in line}
        found += sorted(path for path in loaded if any(Path(path).match(pattern) for pattern in RUNTIMES))
    return list(dict.fromkeys(found))
