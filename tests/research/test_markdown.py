"""Tables and ratios in markdown."""

from __future__ import annotations

import pytest

from efficientdet.research.markdown import table, times


def test_numbers_stand_right_and_none_is_a_dash() -> None:
    rows = [{"name": "a", "ms": "not measured", "x": None}, {"name": "c", "ms": 1.5, "x": "28x"}]
    assert table(rows) == "| name | ms | x |\n|---|---:|---:|\n| a | not measured | - |\n| c | 1.5 | 28x |\n"


@pytest.mark.parametrize(("ratio", "text"), [(0.714, "0.71x"), (1.0, "1.00x"), (6.66, "6.7x"), (28.4, "28x")])
def test_ratios_as_the_paper_prints_them(ratio: float, text: str) -> None:
    assert times(ratio) == text
    assert times(None) is None
