"""Memory that a step frees is kept for the next one, instead of being handed back to the system in between."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Names and defaults of glibc's malloc.h, and of Linux's madvise.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
DEFAULT_MMAP_MAX = 65536
# glibc raises its thresholds to these by itself as large blocks are freed, but no longer once they have been set.
RAISED_MMAP_THRESHOLD, RAISED_TRIM_THRESHOLD = 32 * 1024**2, 64 * 1024**2
MADV_HUGEPAGE = 14
PAGE = 2 * 1024**2
# Set to 0, a run leaves the C library as it is.
KEEP_VARIABLE = "EFFICIENTDET_KEEP_MEMORY"
# Address space, not memory: how far the heap is asked to lie in large pages.
LARGEST_HEAP = 16 * 1024**3


@contextmanager
def kept_memory() -> Iterator[None]:
    """While this lasts, freed memory stays with the process, and lies in large pages where the system has them.

    The maps of a step on a CPU are tens of megabytes each. By default the C library gives every one of them back to the
    system as it is freed, and the system clears each page again when the next step takes it: a third of the time of a
    step. Only glibc on Linux can be told otherwise; elsewhere this does nothing.
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
    """Let the heap grow without touching it, mark that part, and free it: it stays the heap's, and marked."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(LARGEST_HEAP, free // 2)
    address = library.malloc(size)
    if address:
        start = -(-address // PAGE) * PAGE
        library.madvise(start, (address + size - start) // PAGE * PAGE, MADV_HUGEPAGE)
        library.free(address)
