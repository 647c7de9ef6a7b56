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
    """Compute results in threads ahead of their consumer, in the order of the sources.

    Args:
        work: computes the result of one source; its errors are raised where the result would have been.
        sources: iterated in the caller's thread.
        threads: number of threads.
        most: largest number of sources taken ahead of the consumer.
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
        finally:  # an error was raised, or the consumer stopped
            for future in waiting:
                future.cancel()
