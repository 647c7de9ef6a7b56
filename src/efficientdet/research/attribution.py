"""How much each edge of a feature network contributed to a number computed from its output, such as a class logit.

An edge's contribution is gradient x activation: the slope of the number when the map on this edge is scaled. At a node
that sums its inputs, the contributions of its edges add up to the gradient of the fused map times the fused map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.network.topology import Node, Topology
from efficientdet.research.learned_weights import node_modules


@dataclass(frozen=True)
class Edge:
    """One input of one node, and its contribution.

    Attributes:
        cell: number of the cell, from 0.
        node: name of the node.
        input: name of its input.
        number: number of the input among the node's, from 0.
        contribution: gradient x activation, summed over channels and positions; signed.
        share: |contribution| over the sum of the node's; 0 where the node does not contribute.
    """

    cell: int
    node: str
    input: str
    number: int
    contribution: float
    share: float


def attribute(
    network: FeatureNetwork, features: Sequence[Tensor], score_of: Callable[[list[Tensor]], Tensor]
) -> tuple[Edge, ...]:
    """Contribution of every edge of a feature network to one number.

    The network keeps no gradients, but has hooks meanwhile: no other thread may run it at the same time.

    Args:
        network: the feature network, in evaluation mode.
        features: features of the backbone, finest first, each (B, C, h, w) float.
        score_of: computes the number, a scalar tensor, from the fused maps, finest first.

    Returns:
        The edges, in order of computation. Where a node pools by global attention, they include the effect of an input
        on the gate, and do not add up to the fused map's.
    """
    seen: list[tuple[int, Node, list[Tensor]]] = []
    hooks = []

    def recorder(cell: int, node: Node) -> Callable[[nn.Module, tuple[Any, ...]], tuple[list[Tensor]]]:
        def record(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Tensor]]:
            maps = [x.clone() for x in inputs[0]]  # other nodes may read the same map
            seen.append((cell, node, maps))
            return ([x.clone() for x in maps],)  # the activation works in place

        return record

    try:
        for cell, module in node_modules(network):
            hooks.append(module.fuse.register_forward_pre_hook(recorder(cell, module.node)))
        with torch.inference_mode(False), torch.enable_grad():
            score = score_of(network([x.detach().clone().requires_grad_() for x in features]))
            maps = [x for _, _, inputs in seen for x in inputs]
            gradients = iter(torch.autograd.grad(score, maps, allow_unused=True))
    finally:
        for hook in hooks:
            hook.remove()
    edges: list[Edge] = []
    for cell, node, inputs in seen:
        parts = [_inner_product(x.detach(), next(gradients)) for x in inputs]
        rows = zip(node.inputs, parts, _shares(parts), strict=True)
        edges += [Edge(cell, node.name, name, i, part, share) for i, (name, part, share) in enumerate(rows)]
    return tuple(edges)


def _inner_product(x: Tensor, gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float((x.double() * gradient.double()).sum())


def _shares(parts: Sequence[float]) -> list[float]:
    total = sum(abs(part) for part in parts)
    return [abs(part) / total if total else 0.0 for part in parts]


def level_contributions(topology: Topology, edges: Sequence[Edge]) -> dict[int, tuple[float, float]]:
    """(contribution, share) of each level's features, by level, where the nodes of the first cell read them."""
    low, high = topology.levels
    levels = range(low, high + 1)
    first = [edge for edge in edges if edge.cell == 0]
    parts = [sum(edge.contribution for edge in first if edge.input == f"in{level}") for level in levels]
    return dict(zip(levels, zip(parts, _shares(parts), strict=True), strict=True))


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
