"""Figures: points and labels where they belong, files that are written, a clear error without matplotlib."""

from __future__ import annotations

import dataclasses
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from efficientdet.errors import MissingExtraError, SettingError
from efficientdet.network.topology import TOPOLOGIES, Topology, build_topology
from efficientdet.research.edges import Edge
from efficientdet.research.figures import BLUE, LEFT, RED, Series, draw_topology, new_figure, plot, save_figure

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


pytest.importorskip("matplotlib")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for panel in figure.axes for text in panel.texts]


def edges_of(topology: Topology, cells: int = 1) -> list[Edge]:
    """Shares that grow from edge to edge, and a negative value in the last."""
    places = [(cell, node.name, name) for cell in range(cells) for node in topology.nodes for name in node.inputs]
    edges = [Edge(*place, 1.0, number / len(places)) for number, place in enumerate(places)]
    return [*edges[:-1], dataclasses.replace(edges[-1], value=-1.0)]


@pytest.mark.parametrize("levels", [(3, 7), (3, 8)])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_node_and_edge_is_drawn_apart(name: str, levels: tuple[int, int]) -> None:
    topology = build_topology(name, levels)
    figure = draw_topology(topology)
    (panel,) = figure.axes
    names = {f"in{level}" for level in range(levels[0], levels[1] + 1)} | {node.name for node in topology.nodes}
    assert set(texts(figure)) == names and len(panel.texts) == len(names)
    assert len({text.get_position() for text in panel.texts}) == len(names)
    assert len(panel.lines) == sum(len(node.inputs) for node in topology.nodes)
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    assert all(left < x < right and bottom < y < top for line in panel.lines for x, y in line.get_xydata())
    assert panel.get_title(loc="left") == name


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_share_is_the_width_of_its_edge_and_written_on_it(name: str) -> None:
    topology = build_topology(name, (3, 7))
    edges = edges_of(topology)
    (panel,) = draw_topology(topology, edges).axes
    widths = [line.get_linewidth() for line in panel.lines]
    assert widths == sorted(widths) and widths[0] == 0.5 and widths[-1] > 5
    numbers = [text for text in panel.texts if text.get_bbox_patch() is not None]
    assert [text.get_text() for text in numbers] == [f"{e.share:.2f}" for e in edges[:-1]] + [f"-{edges[-1].share:.2f}"]
    assert len({text.get_position() for text in numbers}) == len(edges)


def test_cells_are_drawn_below_one_another() -> None:
    topology = build_topology("bifpn", (3, 7))
    figure = draw_topology(topology, edges_of(topology, cells=3))
    assert [panel.get_title(loc="left") for panel in figure.axes] == [f"bifpn, cell {cell}" for cell in range(3)]


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    topology = dataclasses.replace(build_topology("fpn", (3, 7)), name="<a & b> $\\frac{\x1b")
    save_figure(draw_topology(topology), tmp_path / "drawing.svg")  # where matplotlib would read a formula
    assert "&lt;a &amp; b&gt; $\\frac{\\x1b" in (tmp_path / "drawing.svg").read_text()
