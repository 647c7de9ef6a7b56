"""Drawings of feature networks: every node and edge is there, and shares are written on the edges."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from efficientdet.network.topology import TOPOLOGIES, Topology, build_topology
from efficientdet.research.draw_topology import draw_topology
from efficientdet.research.edges import Edge
from efficientdet.research.figures import save_figure

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
