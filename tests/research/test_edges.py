"""Learned weights of edges; attribution against finite differences, and against a network with one open path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from efficientdet.network.fusion import Fusion
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.research.edges import (
    Edge,
    attribute,
    learned_weights,
    level_contributions,
    node_modules,
    strongest_path,
)

MakeNetwork = Callable[..., FeatureNetwork]
Score = Callable[[list[Tensor]], Tensor]


def make_features(channels: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, width, side, side, generator=generator, dtype=torch.float64)
        for width, side in ((channels, 16), (5, 8), (6, 4))
    ]


def middle_of(level: int) -> Score:
    """A curved number that depends on one level's fused map."""
    return lambda fused: fused[level - 3][0, :, 0].square().sum() + fused[level - 3].mean()


def slope(network: FeatureNetwork, features: list[Tensor], score: Score, hook: Callable[[float], Any]) -> float:
    """Central difference of the score by a factor 1 + step that a hook puts somewhere."""
    values = []
    for step in (1e-5, -1e-5):
        handle = hook(1 + step)
        with torch.no_grad():
            values.append(float(score(network([x.clone() for x in features]))))
        handle.remove()
    return (values[0] - values[1]) / 2e-5


# ---- learned weights
def set_weights(network: FeatureNetwork, cell: int, node: str, weights: list[float] | list[list[float]]) -> None:
    fuse = network.cells[cell][node].fuse
    assert isinstance(fuse, Fusion) and fuse.weights is not None
    with torch.no_grad():
        fuse.weights.copy_(torch.tensor(weights).reshape(fuse.weights.shape))


def edges_of(network: FeatureNetwork, cell: int, node: str) -> list[Edge]:
    return [edge for edge in learned_weights(network) if (edge.cell, edge.node) == (cell, node)]


def test_nodes_come_cell_by_cell_in_the_order_of_the_topology(make_network: MakeNetwork) -> None:
    network = make_network("nas-fpn", "fast")
    names = [node.name for node in network.topology.nodes]
    found = [(cell, module.node.name) for cell, module in node_modules(network)]
    assert found == [(cell, name) for cell in (0, 1) for name in names]


@pytest.mark.parametrize("per_channel", [False, True])
def test_every_edge_has_its_share(make_network: MakeNetwork, per_channel: bool) -> None:
    network = make_network("bifpn", "fast", per_channel=per_channel)
    set_weights(network, 0, "out5", [[weight] * (4 if per_channel else 1) for weight in (3.0, 1.0, 0.0)])
    assert [edge.share for edge in edges_of(network, 0, "out5")] == pytest.approx([0.75, 0.25, 0.0], abs=1e-4)
    assert edges_of(network, 1, "out5")[0].share != edges_of(network, 0, "out5")[0].share
    found = [(edge.cell, edge.node, edge.input) for edge in learned_weights(network)]
    assert found == [
        (cell, node.name, name) for cell in (0, 1) for node in network.topology.nodes for name in node.inputs
    ]


def test_inputs_that_are_pooled_divide_the_share_of_their_weight(make_network: MakeNetwork) -> None:
    network = make_network("nas-fpn", "unbounded")
    set_weights(network, 1, "out5", [-1.0, 3.0])
    assert edges_of(network, 1, "out5") == [
        Edge(1, "out5", "in5", -1.0, 0.25), Edge(1, "out5", "out4", 3.0, 0.375), Edge(1, "out5", "out3", 3.0, 0.375),
    ]  # fmt: skip
    assert not edges_of(network, 1, "a")  # pools its two inputs, and weighs neither


def test_weights_of_channels_are_averaged(make_network: MakeNetwork) -> None:
    network = make_network("bifpn", "unbounded", per_channel=True)
    set_weights(network, 0, "td6", [[1.0, -2.0, 3.0, 6.0], [1.0, 1.0, 1.0, 1.0]])
    assert [(edge.value, edge.share) for edge in edges_of(network, 0, "td6")] == [(2.0, 0.75), (1.0, 0.25)]


def test_plain_sums_have_none(make_network: MakeNetwork) -> None:
    assert learned_weights(make_network("bifpn", "none")) == ()


# ---- contributions
@pytest.mark.parametrize(
    ("name", "fusion", "per_channel"),
    [("bifpn", "fast", False), ("nas-fpn", "softmax", True), ("panet", "none", False), ("fpn", "unbounded", False)],
)
def test_contributions_are_the_slopes_of_each_edge(
    make_network: MakeNetwork, name: str, fusion: str, per_channel: bool
) -> None:
    network, features, score = make_network(name, fusion, per_channel=per_channel), make_features(), middle_of(5)
    edges = iter(attribute(network, features, score))
    for cell, module in node_modules(network):
        for number, read in enumerate(module.node.inputs):

            def scale_input(factor: float, fuse: nn.Module = module.fuse, number: int = number) -> Any:
                return fuse.register_forward_pre_hook(
                    lambda _, maps: ([x * factor if i == number else x * 1 for i, x in enumerate(maps[0])],)
                )

            edge = next(edges)
            assert (edge.cell, edge.node, edge.input) == (cell, module.node.name, read)
            assert edge.value == pytest.approx(slope(network, features, score, scale_input), rel=1e-4, abs=1e-7)
    assert next(edges, None) is None


@pytest.mark.parametrize("fusion", ["fast", "softmax", "unbounded", "none"])
def test_the_edges_of_a_node_add_up_to_its_fused_map(make_network: MakeNetwork, fusion: str) -> None:
    network, features, score = make_network("bifpn", fusion), make_features(), middle_of(4)
    edges = attribute(network, features, score)
    for cell, module in node_modules(network):

        def scale_output(factor: float, fuse: nn.Module = module.fuse) -> Any:
            return fuse.register_forward_hook(lambda _, maps, fused: fused * factor)

        own = [edge for edge in edges if (edge.cell, edge.node) == (cell, module.node.name)]
        total = sum(edge.value for edge in own)
        assert total == pytest.approx(slope(network, features, score, scale_output), rel=1e-4, abs=1e-7)
        reaches = any(edge.value for edge in own)
        assert sum(edge.share for edge in own) == pytest.approx(1.0 if reaches else 0.0)


def test_one_open_way_is_named_and_all_else_is_nothing(make_network: MakeNetwork) -> None:
    """in6 > td6 > td5 > out5 in the first cell, in5 > out5 in the second: every other weight is 0."""
    network = make_network("bifpn", "unbounded")
    opened = {(0, "td6", "in6"), (0, "td5", "td6"), (0, "out5", "td5"), (1, "out5", "in5")}
    for cell, module in node_modules(network):
        assert isinstance(module.fuse, Fusion) and module.fuse.weights is not None
        with torch.no_grad():
            for number, read in enumerate(module.node.inputs):
                module.fuse.weights[number] = float((cell, module.node.name, read) in opened)
    edges = attribute(network, make_features(), middle_of(5))
    assert {(edge.cell, edge.node, edge.input) for edge in edges if edge.value != 0} == opened
    path, share = strongest_path(network.topology, edges, 5)
    assert [(edge.cell, edge.node, edge.input) for edge in path] == sorted(
        opened, key=lambda way: (way[0], ["td6", "td5", "out5"].index(way[1]))
    )
    assert share == 1.0
    levels = level_contributions(network.topology, edges)
    assert [(row["level"], row["share"]) for row in levels if row["contribution"] != 0] == [(6, 1.0)]


def test_level_contributions_are_gradient_times_feature(make_network: MakeNetwork) -> None:
    network = make_network("bifpn", "fast", channels=4)  # P3 has the network's width: nothing lies before its nodes
    features, score = make_features(), middle_of(6)
    edges = attribute(network, features, score)
    leaves = [x.clone().requires_grad_() for x in features]
    (gradient,) = torch.autograd.grad(score(network(leaves)), leaves[:1])
    levels = level_contributions(network.topology, edges)
    assert [row["level"] for row in levels] == [3, 4, 5, 6, 7]
    assert levels[0]["contribution"] == pytest.approx(float((gradient * features[0]).sum()), rel=1e-9)
    assert sum(row["share"] for row in levels) == pytest.approx(1.0)


def test_the_strongest_path_is_the_best_of_all(make_network: MakeNetwork) -> None:
    network = make_network("bifpn", "fast")
    edges = attribute(network, make_features(), middle_of(6))
    outputs = dict(zip((f"in{level}" for level in range(3, 8)), network.topology.outputs(), strict=True))

    def products(cell: int, name: str) -> Iterator[float]:
        if name in outputs:
            yield from (products(cell - 1, outputs[name]) if cell else iter([1.0]))
            return
        for edge in edges:
            if (edge.cell, edge.node) == (cell, name):
                yield from (edge.share * rest for rest in products(cell, edge.input))

    every = list(products(1, "out6"))
    path, share = strongest_path(network.topology, edges, 6)
    assert share == pytest.approx(max(every))
    assert sum(every) == pytest.approx(1.0)
    assert np.prod([edge.share for edge in path]) == pytest.approx(share)
    assert path[0].cell == 0 and path[0].input.startswith("in") and path[-1].node == "out6"


def test_hooks_go_when_the_score_fails(make_network: MakeNetwork) -> None:
    network = make_network("bifpn", "fast")

    def fails(_: list[Tensor]) -> Tensor:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        attribute(network, make_features(), fails)
    assert not any(module._forward_pre_hooks for module in network.modules())
