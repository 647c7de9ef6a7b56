"""Compound scaling in the report: fits, growth, pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientdet.research.report.scaling import QUANTITIES, fits, scaling_section


def test_the_feature_network_follows_the_law_closest() -> None:
    found = fits(2)
    slopes = [found[name].slope for name in ("feature network", "feature network and heads", "whole model")]
    assert slopes == sorted(slopes, reverse=True)
    assert slopes[0] == pytest.approx(1, abs=0.1)
    assert all(found[name].r_squared > 0.99 for name in QUANTITIES)


@pytest.mark.slow
def test_the_section_has_its_tables_and_pictures(tmp_path: Path) -> None:
    text = scaling_section(tmp_path, 2)
    assert "| 2 | 5.61 | 3.37 | 2.56 | 10.83 |" in text
    assert "What a step costs on average: resolution 1.50x" in text
    assert "Figure 6" in text and "not known here" in text
    assert {path.stem for path in tmp_path.iterdir()} == {"scaling_law", "scaling_one_dimension"}
