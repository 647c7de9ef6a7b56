"""What the edges of a feature network are worth: their fusion weights, and their contributions to a number.

An edge's contribution to a number that is computed from the network's output, such as a class logit, is gradient x
activation: the slope of the number when the map on this edge is scaled. At a node that sums its inputs, the
contributions of its edges add up to the gradient of the fused map times the fused map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from efficientdet.network.fusion import GlobalAttention
from efficientdet.network.pyramid import FeatureNetwork, NodeModule
from efficientdet.network.topology import Node, Topology


@dataclass(frozen=True)
class Edge:
    """One input of one node.

    Attributes:
        cell: number of the cell, from 0.
        node: name of the node.
        input: name of its input.
        value: its fusion weight, a mean over channels where each has its own; or its contribution. Signed.
        share: the value's size over the sum of the node's sizes, 0 to 1; 0 where all of them are 0.
    """

    cell: int
    node: str
    input: str
    value: float
    share: float


def learned_weights(network: FeatureNetwork) -> tuple[Edge, ...]:
    """Every edge with the weight that its node has learned for it (section 3.3), in order of computation.

    Edges of nodes that only sum are left out. The two inputs that NAS-FPN pools by global attention have one weight; of
    its share, each has half.
    """
    edges: list[Edge] = []
    for cell, module in node_modules(network):
        weights = module.fuse.normalized_weights()
        if weights is None:
            continue
        by_channel = weights.detach().reshape(len(weights), -1)
        values, sizes = by_channel.mean(1).tolist(), by_channel.abs().mean(1).tolist()
        if isinstance(module.fuse, GlobalAttention):
            values, sizes = [*values, values[-1]], [*sizes[:-1], sizes[-1] / 2, sizes[-1] / 2]
        edges += _edges(cell, module.node, values, sizes)
    return tuple(edges)


def attribute(
    network: FeatureNetwork, features: Sequence[Tensor], score_of: Callable[[list[Tensor]], Tensor]
) -> tuple[Edge, ...]:
    """Every edge with its contribution to one number, in order of computation.

    The network keeps no gradients, but has hooks meanwhile: no other thread may run it at the same time.

    Args:
        network: the feature network, in evaluation mode.
        features: features of the backbone, finest first, each (B, C, h, w) float.
        score_of: computes the number, a scalar tensor, from the fused maps, finest first.

    Returns:
        The edges; contributions are summed over channels and positions. Where a node pools by global attention, they
        include the effect of an input on the gate, and do not add up to the fused map's.
    """
    gates: list[tuple[int, Node, Tensor]] = []
    hooks = []

    def multiply(cell: int, node: Node, _: nn.Module, inputs: tuple[list[Tensor]]) -> tuple[list[Tensor]]:
        """Multiply the maps on a node's edges by 1: the slope of the number by that factor is the contribution."""
        gate = torch.ones(len(inputs[0]), dtype=inputs[0][0].dtype, device=inputs[0][0].device, requires_grad=True)
        gates.append((cell, node, gate))
        return ([x * factor for x, factor in zip(inputs[0], gate, strict=True)],)

    try:
        for cell, module in node_modules(network):
            hooks.append(module.fuse.register_forward_pre_hook(partial(multiply, cell, module.node)))
        with torch.inference_mode(False), torch.enable_grad():
            score = score_of(network([x.detach().clone() for x in features]))
            gradients = torch.autograd.grad(score, [gate for *_, gate in gates], materialize_grads=True)
    finally:
        for hook in hooks:
            hook.remove()
    edges: list[Edge] = []
    for (cell, node, _), gradient in zip(gates, gradients, strict=True):
        edges += _edges(cell, node, gradient.tolist(), gradient.abs().tolist())
    return tuple(edges)


def node_modules(network: FeatureNetwork) -> Iterator[tuple[int, NodeModule]]:
    """Every node with the number of its cell, in the order in which they compute."""
    for cell, nodes in enumerate(network.cells):
        for module in nodes.children():
            if isinstance(module, NodeModule):
                yield cell, module


def _edges(cell: int, node: Node, values: Sequence[float], sizes: Sequence[float]) -> list[Edge]:
    total = sum(sizes) or 1.0
    rows = zip(node.inputs, values, sizes, strict=True)
    return [Edge(cell, node.name, name, value, size / total) for name, value, size in rows]


def level_contributions(topology: Topology, edges: Sequence[Edge]) -> list[dict[str, Any]]:
    """What each level's features contribute, where the nodes of the first cell read them.

    Returns:
        One row for each level, finest first: level, contribution, and share, its size over the sum of all.
    """
    first = [edge for edge in edges if edge.cell == 0]
    levels = range(topology.levels[0], topology.levels[1] + 1)
    parts = [sum(edge.value for edge in first if edge.input == f"in{level}") for level in levels]
    total = sum(map(abs, parts)) or 1.0
    rows = zip(levels, parts, strict=True)
    return [{"level": level, "contribution": part, "share": abs(part) / total} for level, part in rows]


def strongest_path(topology: Topology, edges: Sequence[Edge], level: int) -> tuple[tuple[Edge, ...], float]:
    """The path through all cells to the output of a level with the largest product of its edges' shares.

    Returns:
        The edges of the path, and the product; the products of all paths to the level add up to 1.
    """
    levels = range(topology.levels[0], topology.levels[1] + 1)
    start: tuple[tuple[Edge, ...], float] = ((), 1.0)
    best = {f"in{i}": start for i in levels}
    for cell in range(1 + max(edge.cell for edge in edges)):
        for node in topology.nodes:
            ways = [
                ((*best[edge.input][0], edge), best[edge.input][1] * edge.share)
                for edge in edges
                if edge.cell == cell and edge.node == node.name
            ]
            best[node.name] = max(ways, key=lambda way: way[1])
        best = {f"in{i}": best[name] for i, name in zip(levels, topology.outputs(), strict=True)}
    return best[f"in{level}"]
