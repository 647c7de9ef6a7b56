"""Compound scaling in the report: fits, growth, figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientdet.family import ModelSpec, compound_scaling
from efficientdet.research.report import scaling
from efficientdet.research.report.scaling import DIMENSIONS, alone_rows, fit_power, scaling_parts
from efficientdet.research.scaling import law


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
    monkeypatch.setattr(scaling, "LARGEST_PHI", 2)
    parts = scaling_parts(tmp_path)
    assert "| 2 | 5.61 | 3.37 | 2.56 | 10.83 |" in parts["alone"]
    assert parts["growth"].startswith("resolution 1.50x")
    rows = [line.split(" | ") for line in parts["fits"].splitlines() if " | the law | " in line]
    slopes = [float(row[2]) for row in rows]
    assert len(slopes) == 3 and slopes == sorted(slopes, reverse=True)  # the feature network follows it closest
    assert slopes[0] == pytest.approx(1, abs=0.1)
    assert {path.name for path in tmp_path.iterdir()} == {"scaling_law.png", "scaling_one_dimension.png"}
