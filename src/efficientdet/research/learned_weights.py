"""How the nodes of a trained feature network weigh their inputs (section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from efficientdet.network.fusion import Fusion, GlobalAttention
from efficientdet.network.pyramid import FeatureNetwork, NodeModule


def node_modules(network: FeatureNetwork) -> Iterator[tuple[int, NodeModule]]:
    """Every node with the number of its cell, in the order in which they compute."""
    for cell, nodes in enumerate(network.cells):
        for module in nodes.children():
            if isinstance(module, NodeModule):
                yield cell, module


def fusion_rows(network: FeatureNetwork) -> list[dict[str, Any]]:
    """How every node of every cell weighs its inputs.

    Returns:
        One row for each edge: cell, node, level, input; weight, the factor of the input (the mean over channels where
        each channel has its own); share, its mean |weight| as a part of the node's, 0 to 1; is_learned, False for plain
        sums. The two inputs that NAS-FPN pools by global attention have one weight and one row, `in6 & in4`; how the
        pooling mixes them depends on the image.
    """
    rows = []
    for cell, module in node_modules(network):
        node, inputs = module.node, list(module.node.inputs)
        if isinstance(module.fuse, GlobalAttention):
            inputs[-2:] = [" & ".join(inputs[-2:])]
        weights, shares = module.fuse.normalized_weights(), _shares(module.fuse, len(inputs))
        factors = [1.0] * len(inputs) if weights is None else weights.detach().reshape(len(inputs), -1).mean(1).tolist()
        rows += [
            {
                "cell": cell,
                "node": node.name,
                "level": node.level,
                "input": name,
                "weight": factor,
                "share": share,
                "is_learned": weights is not None,
            }
            for name, factor, share in zip(inputs, factors, shares, strict=True)
        ]
    return rows


def edge_shares(network: FeatureNetwork, cell: int) -> dict[tuple[str, int], float]:
    """Share of each edge in its node's fusion, by (node, number of the input), in one cell; a node's add up to 1.

    The two inputs that NAS-FPN pools each have half the share of their common weight.
    """
    shares: dict[tuple[str, int], float] = {}
    for number, module in node_modules(network):
        if number != cell:
            continue
        pooled = 1 if isinstance(module.fuse, GlobalAttention) else 0
        found = _shares(module.fuse, len(module.node.inputs) - pooled)
        if pooled:
            found[-1:] = [found[-1] / 2] * 2
        shares |= {(module.node.name, place): share for place, share in enumerate(found)}
    return shares


def _shares(fuse: Fusion, inputs: int) -> list[float]:
    """Mean |weight| of each input over the sum of all; equal shares where nothing is weighed."""
    weights = fuse.normalized_weights()
    if weights is None:
        return [1 / inputs] * inputs
    sizes = [float(weight.detach().abs().mean()) for weight in weights]
    return [size / (sum(sizes) or 1.0) for size in sizes]
