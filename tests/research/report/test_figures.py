"""The pictures: labels that cover nothing, files that are pictures, and a clear word when matplotlib is missing."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from efficientdet.errors import MissingExtraError
from efficientdet.research.report import figures
from efficientdet.research.report.figures import Series
from efficientdet.research.scaling import PowerFit

# Four points so near each other that labels to the right of each would cover one another.
CROWD = {f"a rather long label {i}": (100 + 3 * i, 40 + 0.1 * i) for i in range(4)}


def crowded() -> Figure:
    series = [
        Series("line", {f"d{i}": (10.0 ** (i / 2), 30 + 3 * i) for i in range(6)}, figures.BLUE, is_line=True),
        Series("crowd", CROWD, figures.RED, "s", is_hollow=True),
    ]
    guide = PowerFit(0.1, 30, 1)
    figure: Figure = figures.labeled_points("title", "x", "y", series, guide=guide, guide_name="guide")
    return figure


def test_no_label_covers_another_or_leaves_the_picture() -> None:
    figure = crowded()
    axes = figure.axes[0]
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    boxes = [text.get_window_extent() for text in labels]
    assert len(labels) == 10
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)
    markers = axes.transData.transform([*CROWD.values()])
    assert not any(box.contains(x, y) for box in boxes for x, y in markers)


def test_png_and_svg_are_written_whole_and_the_backend_is_left_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures.save(crowded(), tmp_path / "new" / "picture")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["picture.png", "picture.svg"]
    with Image.open(tmp_path / "new" / "picture.png") as picture:
        assert picture.size[0] > 1000 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    assert ET.parse(tmp_path / "new" / "picture.svg").getroot().tag.endswith("svg")
    assert dict(matplotlib.rcParams) == before


def test_lines_and_bars_show_what_they_are_given() -> None:
    axes = figures.lines("t", "x", "y", [0, 1], {"a": [1, 2], "b": [1, 30]}).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 2], [1, 30]]
    axes = figures.bars("t", "x", {"fast": (1.0, 0.9, 1.2), "softmax": (1.3, 1.1, 1.4)}).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [1.0, 1.3]
    assert axes.get_xlim()[1] > 1.4


def test_shares_have_a_picture_a_cell_and_write_what_has_room() -> None:
    cell = {"td6": {"in6": 0.9, "in7": 0.1}, "out7": {"in7": 0.5, "out6": 0.5}}
    figure = figures.shares("t", [cell] * 5)
    assert [axes.get_title() for axes in figure.axes] == [f"cell {i}" for i in range(5)]
    assert [text.get_text() for text in figure.axes[0].texts] == ["in6 0.90", "in7 0.50", "out6 0.50"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efficientdet\[report\]'"):
        figures.check_matplotlib()
