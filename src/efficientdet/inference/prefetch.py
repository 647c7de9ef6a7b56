"""Work that threads do ahead of the consumer of its results."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from efficientdet.images.letterbox import Prepared

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def prefetch(
    work: Callable[[_Item], _Result],
    sources: Iterable[_Item],
    threads: int,
    most: int,
    cost: Callable[[_Item], int] = lambda source: 0,
    most_cost: int = 0,
) -> Iterator[Iterator[_Result]]:
    """Compute results in threads ahead of their consumer, in the order of the sources.

    Args:
        work: computes the result of one source; its errors are raised where the result would have been.
        sources: iterated in the caller's thread.
        threads: number of threads.
        most: largest number of sources taken ahead of the consumer.
        cost: what a source takes, such as bytes of memory.
        most_cost: largest sum of costs that are worked on ahead; a source that costs more is worked on alone.
    """
    waiting: deque[tuple[Future[_Result], int]] = deque()

    def results() -> Iterator[_Result]:
        ahead = 0
        for source in sources:
            own = cost(source)
            while waiting and ahead + own > most_cost:
                future, done = waiting.popleft()
                yield future.result()
                ahead -= done
            waiting.append((pool.submit(work, source), own))
            ahead += own
            if len(waiting) == most:
                future, done = waiting.popleft()
                yield future.result()
                ahead -= done
        while waiting:
            yield waiting.popleft()[0].result()

    with ThreadPoolExecutor(threads) as pool:
        try:
            yield results()
        finally:  # an error was raised, or the consumer stopped
            for future, _ in waiting:
                future.cancel()


def run_by_size(images: Sequence[Prepared], run: Callable[[list[Prepared]], list[_Result]]) -> list[_Result]:
    """What `run` gives for each image, called once for all that have one size: so a batch gives what each has alone."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.pixels.shape, []).append(place)
    found: dict[int, _Result] = {}
    for same in places.values():
        found.update(zip(same, run([images[place] for place in same]), strict=True))
    return [found[place] for place in range(len(images))]


def next_batch(items: Iterator[_Item], count: int, cost: Callable[[_Item], int], most_cost: int) -> list[_Item]:
    """The next items: `count` of them, or fewer where together they cost more than `most_cost`."""
    batch: list[_Item] = []
    for item in itertools.islice(items, count):
        batch.append(item)
        if sum(map(cost, batch)) > most_cost:
            break
    return batch
