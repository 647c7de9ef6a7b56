"""Figures: points and labels where they belong, files that are written, a clear error without matplotlib."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.text import Annotation
from PIL import Image

from efficientdet.errors import MissingExtraError, SettingError
from efficientdet.research.figures import BLUE, LEFT, RED, Series, new_figure, plot, save_figure

matplotlib = pytest.importorskip("matplotlib")

LINE = Series("line", {"a": (1.0, 30.0), "b": (100.0, 40.0)}, "o-", BLUE, LEFT)
POINTS = Series("points", {"c": (10.0, 35.0)}, "s", RED)


def test_points_are_drawn_and_labeled_on_their_side() -> None:
    axes = plot("title", "x", "y", [LINE, POINTS], ("log", "linear")).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 100], [10]]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "None"]
    labels = {text.get_text(): text for text in axes.texts if isinstance(text, Annotation)}
    assert set(labels) == {"a", "b", "c"}
    assert (labels["a"].get_ha(), labels["c"].get_ha()) == ("right", "left")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_a_series_may_have_no_labels() -> None:
    guide = Series("guide", {"start": (1, 1), "end": (10, 10)}, "--", BLUE, None)
    assert not plot("title", "x", "y", [guide]).axes[0].texts


def test_files_are_written_and_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figure = plot("title", "x", "y", [LINE])
    save_figure(figure, tmp_path / "new" / "figure.png")
    save_figure(figure, tmp_path / "new" / "figure.svg")
    with Image.open(tmp_path / "new" / "figure.png") as image:
        assert image.size[0] > 1000 and len(image.convert("RGB").getcolors(1 << 20) or []) > 50
    assert ET.parse(tmp_path / "new" / "figure.svg").getroot().tag.endswith("svg")
    assert ">title</text>" in (tmp_path / "new" / "figure.svg").read_text()
    assert dict(matplotlib.rcParams) == before


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    figure = plot("title", "x", "y", [LINE])
    save_figure(figure, tmp_path / "figure")
    assert ET.parse(tmp_path / "figure").getroot().tag.endswith("svg")
    with pytest.raises(SettingError, match=r"figure.abc: cannot be drawn \(.*'abc'.*supported"):
        save_figure(figure, tmp_path / "figure.abc")
    assert [path.name for path in tmp_path.iterdir()] == ["figure"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efficientdet\[report\]'"):
        new_figure(1, 1)
