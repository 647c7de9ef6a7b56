from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from efficientdet.inference.prefetch import next_batch, prefetch


def test_results_come_in_order_however_long_each_takes() -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    with prefetch(work, range(20), threads=4, most=5) as results:
        assert list(results) == [number * number for number in range(20)]


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_taken_than_asked(most: int) -> None:
    taken = []

    def sources() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    with prefetch(lambda number: number, sources(), threads=2, most=most) as results:
        assert next(results) == 0
        assert taken == list(range(most))


def test_an_error_stands_where_the_result_would() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        prefetch(lambda number: 1 / number, [2, 1, 0, 4], threads=2, most=4) as results,
    ):
        assert [next(results), next(results)] == [0.5, 1.0]
        next(results)


def test_who_wants_no_more_waits_for_no_more() -> None:
    done: list[int] = []
    gate = threading.Event()

    def work(number: int) -> int:
        if number:
            gate.wait(5)
        done.append(number)
        return number

    with prefetch(work, range(50), threads=1, most=50) as results:
        assert next(results) == 0
        gate.set()
    assert len(done) < 50


def test_costs_worked_on_together_stay_below_the_limit() -> None:
    ahead: list[int] = []
    lock = threading.Lock()

    def work(size: int) -> int:
        with lock:
            ahead.append(size)
        return size

    sizes = [3, 3, 3, 9, 1, 1, 20, 2]
    taken = 0
    with prefetch(work, sizes, threads=4, most=8, cost=lambda size: size, most_cost=8) as results:
        for number, size in enumerate(results):
            assert size == sizes[number]
            taken += size
            time.sleep(0.01)
            with lock:
                held = sum(ahead) - taken
            assert held <= 8 or held == max(sizes)
    assert taken == sum(sizes)


def test_a_batch_is_smaller_where_its_items_cost_much() -> None:
    items = iter([1, 1, 1, 5, 1])
    sizes = [len(next_batch(items, 3, lambda cost: cost, 4)) for _ in range(4)]
    assert sizes == [3, 1, 1, 0]
