"""Keeps the memory that a training step frees for the next step, instead of returning it to the system in between."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from efficientdet.data.dataset import free_memory

# Names and values from glibc's malloc.h and Linux's madvise.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
DEFAULT_MMAP_MAX = 65536
# glibc raises its thresholds to these by itself as large blocks are freed, unless they were ever set.
RAISED_MMAP_THRESHOLD, RAISED_TRIM_THRESHOLD = 32 * 1024**2, 64 * 1024**2
MADV_HUGEPAGE = 14
PAGE = 2 * 1024**2
# A run leaves the C library's settings alone where this is 0.
KEEP_VARIABLE = "EFFICIENTDET_KEEP_MEMORY"
# How much address space (not memory) of the heap is marked for large pages.
LARGEST_HEAP = 16 * 1024**3


def kept_memory_for(device: str, workers: int) -> AbstractContextManager[None]:
    """`kept_memory` where a run gains by it: on a CPU, without loader processes, unless it is switched off.

    Loader processes are copies of this one, so its memory should be no larger than needed then.
    """
    keeps = device == "cpu" and workers == 0 and os.environ.get(KEEP_VARIABLE) != "0"
    return kept_memory() if keeps else nullcontext()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within this context, freed memory stays with the process, in large pages where the system has them.

    The feature maps of a step on a CPU take tens of megabytes each. By default the C library returns each to the system
    when it is freed, and the system clears its pages again for the next step, which takes a third of a step's time.
    Only glibc on Linux has settings for this; elsewhere nothing happens.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, -1)
    _ask_for_large_pages(library)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        library.mallopt(M_MMAP_THRESHOLD, RAISED_MMAP_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, RAISED_TRIM_THRESHOLD)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    library.malloc_trim.argtypes = [ctypes.c_size_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def _ask_for_large_pages(library: ctypes.CDLL) -> None:
    """Grow the heap without touching it, mark that range and free it: it stays part of the heap, and stays marked."""
    size = min(LARGEST_HEAP, free_memory() // 2)
    address = library.malloc(size)
    if address:
        start = -(-address // PAGE) * PAGE
        library.madvise(start, (address + size - start) // PAGE * PAGE, MADV_HUGEPAGE)
        library.free(address)
