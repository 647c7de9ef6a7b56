"""Drawings of feature networks: every node and edge is there, and shares are written beside the edges."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from efficientdet.network.topology import TOPOLOGIES, build_topology
from efficientdet.research.draw_topology import draw_topology

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("levels", [(3, 7), (3, 8)])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_node_and_edge_is_drawn_apart(name: str, levels: tuple[int, int]) -> None:
    topology = build_topology(name, levels)
    root = ET.fromstring(draw_topology(topology))
    circles = {(c.get("cx"), c.get("cy")) for c in root.iter(f"{SVG}circle")}
    assert len(circles) == len(topology.nodes) + levels[1] - levels[0] + 1
    assert len(list(root.iter(f"{SVG}path"))) == sum(len(node.inputs) for node in topology.nodes)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert all(0 < float(x or 0) < width and 0 < float(y or 0) < height for x, y in circles)


def test_names_are_escaped() -> None:
    topology = dataclasses.replace(build_topology("fpn", (3, 7)), name="<a & b>\x1b")
    assert "&lt;a &amp; b&gt;\\x1b" in draw_topology(topology)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_share_is_the_width_of_its_edge_and_written_beside_it(name: str) -> None:
    topology = build_topology(name, (3, 7))
    edges = [(node.name, place) for node in topology.nodes for place in range(len(node.inputs))]
    shares = {edge: number / len(edges) for number, edge in enumerate(edges)}
    root = ET.fromstring(draw_topology(topology, shares))
    widths = [float(path.get("stroke-width", 0)) for path in root.iter(f"{SVG}path")]
    assert widths == sorted(widths) and widths[0] == 0.6 and widths[-1] > 6
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert all(f"{share:.2f}" in texts for share in shares.values())
    places = [(number.get("x"), number.get("y")) for number in root.iter(f"{SVG}rect")]
    assert len(set(places)) == len(edges) + 1  # and the background
