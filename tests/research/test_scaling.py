"""phi is found for a cost, and costs stand beside the law."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientdet.errors import SettingError
from efficientdet.family import ModelSpec, compound_scaling
from efficientdet.network.count import count_parts
from efficientdet.research import scaling
from efficientdet.research.scaling import (
    DIMENSIONS,
    PYRAMID,
    alone_rows,
    find_phi,
    fit_power,
    law,
    multiply_adds,
    scaling_parts,
    scaling_rows,
)


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


# ---- the report's section
def test_a_power_law_is_found_exactly() -> None:
    assert fit_power([1, 2, 4, 10], [3, 12, 48, 300]) == pytest.approx((2.0, 1.0))
    assert fit_power([1, 2, 4], [1, 3, 4])[1] < 1


@pytest.mark.parametrize(
    ("dimension", "changed"),
    [("resolution", {"image_size"}), ("width", {"width"}), ("depth", {"depth", "head_depth"})],
)
def test_one_dimension_alone_changes(dimension: str, changed: set[str]) -> None:
    base, larger = compound_scaling(0), DIMENSIONS[dimension](3)
    fields = ModelSpec.__dataclass_fields__
    assert {name for name in fields if getattr(base, name) != getattr(larger, name)} == changed
    assert law(larger) > law(base)


def test_scaling_alone_costs_less_than_scaling_everything() -> None:
    start, end = alone_rows(1)
    assert len({start[name] for name in DIMENSIONS}) == 1
    assert start["depth"] < end["depth"] < end["width"] < end["resolution"] < end["compound"]


@pytest.mark.slow
def test_the_section_has_its_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "TABLED_PHI", 2)
    parts = scaling_parts(tmp_path)
    assert "| 2 | 5.61 | 3.37 | 2.56 | 10.83 |" in parts["alone"]
    assert parts["growth"].startswith("resolution 1.50x")
    rows = [line.split(" | ") for line in parts["fits"].splitlines() if " | the law | " in line]
    slopes = [float(row[2]) for row in rows]
    assert len(slopes) == 3 and slopes == sorted(slopes, reverse=True)  # the feature network follows it closest
    assert slopes[0] == pytest.approx(1, abs=0.1)
    assert {path.name for path in tmp_path.iterdir()} == {"scaling_law.png", "scaling_one_dimension.png"}
