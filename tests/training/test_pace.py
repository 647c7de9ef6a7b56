from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.training.pace import Pace


def test_a_run_that_is_not_changed_follows_its_schedule_to_the_bit() -> None:
    pace = Pace()
    assert [pace.position(step) for step in range(5)] == [0, 1, 2, 3, 4]
    assert pace.end(100) == 100
    assert not pace.is_changed


def test_a_run_that_has_to_end_sooner_goes_faster_from_where_it_is() -> None:
    pace = Pace()
    pace.change(40, 30, 100)
    assert pace.end(100) == 70
    assert [pace.position(step) for step in (39, 40, 55, 70)] == pytest.approx([39, 40, 70, 100])
    pace.change(55, 60, 100)
    assert pace.end(100) == 115
    assert [pace.position(step) for step in (40, 55, 85, 115)] == pytest.approx([40, 70, 85, 100])


def test_a_run_without_a_step_left_is_at_its_end() -> None:
    pace = Pace()
    pace.change(10, 0, 100)
    assert pace.end(100) == 10
    assert pace.position(10) == 100


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10_000), st.lists(st.tuples(st.integers(0, 500), st.integers(1, 5000)), max_size=6))
def test_every_change_is_continuous_and_ends_at_the_schedules_end(total: int, changes: list[tuple[int, int]]) -> None:
    pace, step = Pace(), 0
    for ahead, left in changes:
        step = min(step + ahead, pace.end(total) - 1)
        before = pace.position(step)
        pace.change(step, left, total)
        assert pace.position(step) == pytest.approx(before)
        assert pace.end(total) == step + left
    end = pace.end(total)
    assert pace.position(end) == pytest.approx(total)
    positions = [pace.position(one) for one in range(0, end + 1, max(1, end // 200))]
    assert all(later > earlier for earlier, later in pairwise(positions))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 500)), max_size=4))
def test_a_saved_pace_is_the_same(changes: list[tuple[int, int]]) -> None:
    pace, again, step = Pace(), Pace(), 0
    for ahead, left in changes:
        step = min(step + ahead, pace.end(300) - 1)
        pace.change(step, left, 300)
    again.load_state_dict(json.loads(json.dumps(pace.state_dict())))
    assert again.stretches == pace.stretches
