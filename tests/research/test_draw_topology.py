"""Drawings of feature networks: every node and edge is there, and learned weights are written beside them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

from efficientdet.network.efficientdet import create_model
from efficientdet.network.fusion import Fusion
from efficientdet.network.topology import TOPOLOGIES, build_topology
from efficientdet.research.draw_topology import draw_topology, learned_weights

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
    topology = build_topology("fpn", (3, 7))
    object.__setattr__(topology, "name", "<a & b>")
    assert "&lt;a &amp; b&gt;" in draw_topology(topology)


@pytest.mark.parametrize("per_channel", [False, True])
def test_learned_weights_are_the_shares_of_each_fusion(per_channel: bool) -> None:
    model = create_model("lite0", 1, fusion="fast", fusion_per_channel=per_channel)
    node = model.feature_network.cells[0]["out5"]
    assert isinstance(node.fuse, Fusion) and node.fuse.weights is not None
    with torch.no_grad():
        node.fuse.weights.copy_(torch.tensor([3.0, 1.0, 0.0]).reshape(3, *[1] * (node.fuse.weights.ndim - 1)))
    shares = learned_weights(model.feature_network, 0)
    assert [shares["out5", i] for i in range(3)] == pytest.approx([0.75, 0.25, 0.0])
    assert shares["td6", 0] == pytest.approx(0.5)
    drawing = ET.fromstring(draw_topology(model.feature_network.topology, shares))
    texts = [text.text for text in drawing.iter(f"{SVG}text")]
    assert {"0.75", "0.25", "0.00"} <= set(texts)
