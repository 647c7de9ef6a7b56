"""Class and box heads: all levels share the convolutions, and each has its own batch norms (section 4.1)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from efficientdet.network.layers import SeparableConv2d, activation, batch_norm, truncated_normal_

# Probability of an object at every anchor before training, with which focal loss starts stably (Lin et al. 2017, 4.1).
PRIOR_PROBABILITY = 0.01


class Head(nn.Module):
    """A tower of separable convolutions, and one that predicts.

    Args:
        width: channels of the feature maps.
        depth: convolutions before the predicting one.
        levels: number of pyramid levels; each has its own batch norms.
        anchors_per_cell: anchors at each position.
        outputs_per_anchor: K for the class head, 4 for the box head.
        act: name of the activation.
        padding: `same` or `symmetric`.
        bias: whether convolutions before a batch norm have a bias.
        prior: probability that every output of a class head starts with; None for a box head.
    """

    def __init__(
        self, width: int, depth: int, levels: int, anchors_per_cell: int, outputs_per_anchor: int,
        act: str, padding: str, bias: bool, prior: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.outputs_per_anchor = outputs_per_anchor
        self.convs = nn.ModuleList(SeparableConv2d(width, width, bias=bias, padding=padding) for _ in range(depth))
        self.bns = nn.ModuleList(nn.ModuleList(batch_norm(width) for _ in range(levels)) for _ in range(depth))
        self.act = activation(act)
        self.predict = SeparableConv2d(width, anchors_per_cell * outputs_per_anchor, padding=padding)
        self._initialize(prior)

    def _initialize(self, prior: float | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                truncated_normal_(module.weight, math.sqrt(1.0 / fan_in))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if prior is not None and self.predict.pointwise.bias is not None:
            nn.init.constant_(self.predict.pointwise.bias, -math.log((1 - prior) / prior))

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """List of (B, width, h, w) to list of (B, h * w * anchors_per_cell, outputs_per_anchor)."""
        return [self.predict_level(x, level) for level, x in enumerate(pyramid)]

    def predict_level(self, x: Tensor, level: int) -> Tensor:
        """(B, width, h, w) of a level, the finest being 0, to (B, h * w * anchors_per_cell, outputs_per_anchor)."""
        for conv, bns in zip(self.convs, self.bns, strict=True):
            x = self.act(bns[level](conv(x)))  # type: ignore[index]
        x = self.predict(x)  # (B, anchors * outputs, h, w)
        x = x.permute(0, 2, 3, 1)  # (B, h, w, anchors * outputs)
        return x.reshape(x.shape[0], -1, self.outputs_per_anchor)
