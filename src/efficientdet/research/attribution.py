"""Which edges of a feature network carried a number that comes of it, such as one detection's logit.

The contribution of an edge is gradient x activation: how much the number changes, to first order, per share by which
the map on this edge is scaled. A node that sums its inputs splits what passes through it exactly: its edges'
contributions add up to the gradient of the fused map times the fused map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efficientdet.network.pyramid import FeatureNetwork, NodeModule
from efficientdet.network.topology import Node, Topology


@dataclass(frozen=True)
class Edge:
    """One input of one node, and what it did for a detection.

    Attributes:
        cell: which repetition of the feature network's cell, from 0.
        node: the node that reads.
        input: what it reads.
        number: which of the node's inputs that is, from 0.
        contribution: gradient x activation of the logit, summed over channels and positions; signed.
        share: |contribution| among the node's edges; 0 at a node on which the logit does not depend.
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
    """Contribution of every edge of the feature network to one number.

    Leaves no gradients behind, but hooks the network while it works: no other thread may run it then.

    Args:
        network: the feature network, in evaluation mode.
        features: of the backbone, finest first, each (B, C, h, w).
        score_of: fused maps, finest first, to a scalar that autograd can follow.

    Returns:
        The edges, in order of computation. At a node that pools by global attention, the contributions include what
        the inputs change about its gate, and so do not add up to that of the fused map.
    """
    seen: list[tuple[int, Node, list[Tensor]]] = []
    hooks = []

    def recorder(cell: int, node: Node) -> Callable[[nn.Module, tuple[Any, ...]], tuple[list[Tensor]]]:
        def record(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Tensor]]:
            maps = [x.clone() for x in inputs[0]]  # this edge's own: others may read the same map
            seen.append((cell, node, maps))
            return ([x.clone() for x in maps],)  # the activation works in place, on a lone input too

        return record

    try:
        for cell, nodes in enumerate(network.cells):
            for module in nodes.children():
                if isinstance(module, NodeModule):
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
    """(contribution, share) of each level's features, by level.

    Measured where nodes of the first cell read them: brought to the network's width and the node's size.
    """
    low, high = topology.levels
    levels = range(low, high + 1)
    first = [edge for edge in edges if edge.cell == 0]
    parts = [sum(edge.contribution for edge in first if edge.input == f"in{level}") for level in levels]
    return dict(zip(levels, zip(parts, _shares(parts), strict=True), strict=True))


def strongest_path(topology: Topology, edges: Sequence[Edge], level: int) -> tuple[tuple[Edge, ...], float]:
    """The path from the first cell's inputs to the last one's output at a level whose product of shares is largest.

    Returns:
        The edges of the path, and that product: over all paths to the level, the products add up to 1.
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
