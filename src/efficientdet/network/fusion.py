"""How a node weighs the feature maps that it fuses (section 3.3): unbounded, softmax, fast normalized, or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efficientdet.errors import unknown_name

FUSIONS = ("fast", "softmax", "unbounded", "none")
EPSILON = 1e-4


class Fusion(nn.Module):
    """Weighted sum of feature maps of one shape, with a learnable weight for each map, or for each of its channels.

    Args:
        kind: `fast`: sum of relu(w_i) x_i / (epsilon + sum of relu(w_j)); `softmax`: softmax(w)_i x_i; `unbounded`:
            w_i x_i; `none`: a plain sum without weights.
        inputs: number of maps.
        channels: C for a weight for each channel of each map; None for one weight for each map.

    Raises:
        UnknownNameError: the kind is not one of `FUSIONS`.
    """

    def __init__(self, kind: str, inputs: int, channels: int | None = None) -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise unknown_name("fusion", kind, FUSIONS)
        self.kind = kind
        shape = (inputs,) if channels is None else (inputs, channels, 1, 1)
        self.weights = None if kind == "none" else nn.Parameter(torch.ones(shape))

    def normalized_weights(self) -> Tensor | None:
        """(inputs,) or (inputs, C, 1, 1) factors of the maps; None for a plain sum."""
        if self.weights is None or self.kind == "unbounded":
            return self.weights
        if self.kind == "softmax":
            return self.weights.softmax(0)
        positive = self.weights.relu()
        return positive / (positive.sum(0) + EPSILON)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """List of (B, C, h, w) to their weighted sum, (B, C, h, w)."""
        weights = self.normalized_weights()
        terms = maps if weights is None else [x * w.to(x.dtype) for x, w in zip(maps, weights, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class GlobalAttention(Fusion):
    """NAS-FPN's global pooling of the last two maps (Ghiasi et al. 2019, figure 4), fused with the others.

    Args:
        kind: how the result is fused with the other maps, see `Fusion`; with two maps only, nothing is left to fuse.
        inputs: number of maps, at least two.
        channels: see `Fusion`.
    """

    def __init__(self, kind: str, inputs: int, channels: int | None = None) -> None:
        super().__init__(kind if inputs > 2 else "none", inputs - 1, channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """List of (B, C, h, w), x and y the last, to the fusion of the others with y + sigmoid(mean(x)) * x."""
        *others, x, y = maps
        return super().forward([*others, y + x.mean((2, 3), keepdim=True).sigmoid() * x])
