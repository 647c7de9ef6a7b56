"""phi is found for a cost, and costs stand beside the law."""

from __future__ import annotations

import pytest

from efficientdet.errors import SettingError
from efficientdet.family import compound_scaling
from efficientdet.network.count import count_parts
from efficientdet.research.scaling import PYRAMID, find_phi, law, multiply_adds, scaling_rows


def test_the_model_found_costs_no_more_and_the_next_one_does() -> None:
    spec = find_phi(4e9)
    assert multiply_adds(spec) <= 4e9
    phi = float(spec.name.removeprefix("phi"))
    assert multiply_adds(compound_scaling(phi + 0.125)) > 4e9


def test_any_cost_can_be_given() -> None:
    assert find_phi(900, lambda spec: spec.image_size).image_size == 896


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_targets_must_be_positive(target: float) -> None:
    with pytest.raises(SettingError, match="target"):
        find_phi(target)


def test_a_target_below_the_smallest_says_what_that_costs() -> None:
    with pytest.raises(SettingError, match="phi 0, costs 2.492e.09 already"):
        find_phi(1e9)


def test_rows_grow_with_phi() -> None:
    rows = scaling_rows(2)
    assert [row["phi"] for row in rows] == [0, 1, 2]
    assert rows[0]["GMAC"] == 2.49
    assert rows[1]["GMAC"] == 6.0
    assert rows[2]["times phi 0"] > rows[1]["times phi 0"] > 1


def test_the_law_s_own_part_is_counted_without_the_backbone() -> None:
    spec = compound_scaling(0)
    parts = count_parts(spec)
    assert multiply_adds(spec, PYRAMID) == multiply_adds(spec) - parts["backbone"][1]
    assert law(spec) == 6 * 64**2 * 512**2
    assert scaling_rows(1)[1]["law"] == round(7 * 88**2 * 640**2 / (6 * 64**2 * 512**2), 2)
