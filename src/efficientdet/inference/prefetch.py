"""Work that threads do ahead of the consumer of its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def prefetch(
    work: Callable[[_Item], _Result], sources: Iterable[_Item], threads: int, most: int
) -> Iterator[Iterator[_Result]]:
    """Give results in the order of their sources, at most so many of them worked out ahead of what is taken.

    Args:
        work: gives the result of one source; its errors are raised where the result would have been.
        sources: taken one by one, by the caller's thread.
        threads: how many.
        most: how many sources are taken ahead.
    """
    waiting: deque[Future[_Result]] = deque()

    def results() -> Iterator[_Result]:
        for source in sources:
            waiting.append(pool.submit(work, source))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with ThreadPoolExecutor(threads) as pool:
        try:
            yield results()
        finally:  # a picture could not be read, or the caller wants no more
            for future in waiting:
                future.cancel()
