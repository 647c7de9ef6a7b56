"""Compound scaling in the report: fits, growth, figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientdet.research.report import scaling
from efficientdet.research.report.scaling import fit_power, scaling_section


def test_a_power_law_is_found_exactly() -> None:
    assert fit_power([1, 2, 4, 10], [3, 12, 48, 300]) == pytest.approx((2.0, 1.0))
    assert fit_power([1, 2, 4], [1, 3, 4])[1] < 1


@pytest.mark.slow
def test_the_section_has_its_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LARGEST_PHI", 2)
    text = scaling_section(tmp_path)
    assert "| 2 | 5.61 | 3.37 | 2.56 | 10.83 |" in text
    assert "on average by: resolution 1.50x" in text
    rows = [line.split(" | ") for line in text.splitlines() if " | the law | " in line]
    slopes = [float(row[2]) for row in rows]
    assert len(slopes) == 3 and slopes == sorted(slopes, reverse=True)  # the feature network follows it closest
    assert slopes[0] == pytest.approx(1, abs=0.1)
    assert "Figure 6" in text
    assert {path.name for path in tmp_path.iterdir()} == {"scaling_law.png", "scaling_one_dimension.png"}
