"""Learned fusion weights: a row for each edge, and the shares of the edges in a drawing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from efficientdet.network.fusion import Fusion
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.research.learned_weights import edge_shares, fusion_rows, node_modules

MakeNetwork = Callable[..., FeatureNetwork]


def set_weights(network: FeatureNetwork, cell: int, node: str, weights: list[float] | list[list[float]]) -> None:
    fuse = network.cells[cell][node].fuse
    assert isinstance(fuse, Fusion) and fuse.weights is not None
    with torch.no_grad():
        fuse.weights.copy_(torch.tensor(weights).reshape(fuse.weights.shape))


def test_nodes_come_cell_by_cell_in_the_order_of_the_topology(make_network: MakeNetwork) -> None:
    network = make_network("nas-fpn", "fast")
    names = [node.name for node in network.topology.nodes]
    found = [(cell, module.node.name) for cell, module in node_modules(network)]
    assert found == [(cell, name) for cell in (0, 1) for name in names]


def test_rows_tell_weights_shares_and_what_is_pooled(make_network: MakeNetwork) -> None:
    network = make_network("nas-fpn", "unbounded")
    set_weights(network, 1, "out5", [-1.0, 3.0])
    rows = fusion_rows(network)
    assert not next(row for row in rows if row["input"] == "in6 & in4")["is_learned"]
    own = {row["input"]: row for row in rows if (row["cell"], row["node"]) == (1, "out5")}
    assert {name: (row["weight"], row["share"]) for name, row in own.items()} == {
        "in5": (-1.0, 0.25), "out4 & out3": (3.0, 0.75),
    }  # fmt: skip
    assert own["in5"]["is_learned"] and own["in5"]["level"] == 5


def test_weights_of_channels_are_averaged(make_network: MakeNetwork) -> None:
    network = make_network("bifpn", "unbounded", per_channel=True)
    set_weights(network, 0, "td6", [[1.0, 2.0, 3.0, 6.0], [1.0, 1.0, 1.0, 1.0]])
    first, second = (row for row in fusion_rows(network) if (row["cell"], row["node"]) == (0, "td6"))
    assert (first["weight"], first["share"]) == (3.0, 0.75)
    assert (second["weight"], second["share"]) == (1.0, 0.25)


@pytest.mark.parametrize("per_channel", [False, True])
def test_edges_have_the_shares_of_their_fusion(make_network: MakeNetwork, per_channel: bool) -> None:
    network = make_network("bifpn", "fast", per_channel=per_channel)
    set_weights(network, 0, "out5", [[weight] * (4 if per_channel else 1) for weight in (3.0, 1.0, 0.0)])
    shares = edge_shares(network, 0)
    assert [shares["out5", i] for i in range(3)] == pytest.approx([0.75, 0.25, 0.0])
    assert edge_shares(network, 1)["out5", 0] != shares["out5", 0]
    edges = {(node.name, i) for node in network.topology.nodes for i in range(len(node.inputs))}
    assert set(shares) == edges


def test_inputs_that_are_pooled_divide_their_share(make_network: MakeNetwork) -> None:
    network = make_network("nas-fpn", "unbounded")
    set_weights(network, 0, "out5", [-1.0, 3.0])
    shares = edge_shares(network, 0)
    assert [shares["out5", i] for i in range(3)] == [0.25, 0.375, 0.375]
    assert [shares["a", i] for i in range(2)] == [0.5, 0.5]


def test_plain_sums_have_equal_shares(make_network: MakeNetwork) -> None:
    network = make_network("bifpn", "none")
    assert {row["share"] for row in fusion_rows(network) if row["node"] == "out5"} == {1 / 3}
    assert not any(row["is_learned"] for row in fusion_rows(network))
    assert edge_shares(network, 1)["out5", 2] == 1 / 3
