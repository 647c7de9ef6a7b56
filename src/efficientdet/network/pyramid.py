"""FeatureNetwork: a topology's cell, repeated over the backbone's features (section 3)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from efficientdet.network.fusion import Fusion, GlobalAttention
from efficientdet.network.layers import Conv2d, SeparableConv2d, activation, batch_norm, resize_map
from efficientdet.network.topology import Node, Topology


class Lateral(nn.Sequential):
    """1x1 convolution and batch norm that bring a feature of the backbone to the pyramid's width."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 1, bias=bias)
        self.bn = batch_norm(outputs)


class NodeModule(nn.Module):
    """One node: resize the inputs to its level, fuse them, activation, separable convolution, batch norm."""

    def __init__(
        self, node: Node, input_channels: list[int], width: int, fusion: str, act: str, padding: str, bias: bool,
        separable: bool = True, per_channel: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.node = node
        self.padding = padding
        self.laterals = nn.ModuleDict(
            {
                name: Lateral(channels, width, bias)
                for name, channels in zip(node.inputs, input_channels, strict=True)
                if channels != width
            }
        )
        fuse = GlobalAttention if node.combine == "attention" else Fusion
        self.fuse = fuse(fusion, len(node.inputs), width if per_channel else None)
        self.act = activation(act)
        conv = SeparableConv2d(width, width, bias, padding) if separable else Conv2d(width, width, 3, bias=bias)
        self.conv: nn.Module = conv
        self.bn = batch_norm(width)

    def forward(self, maps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Earlier maps by name, each (B, C, h, w), to this node's (B, width, *size)."""
        inputs = []
        for name in self.node.inputs:
            x = maps[name]
            if name in self.laterals:
                x = self.laterals[name](x)
            inputs.append(resize_map(x, size, self.padding))
        fused = self.fuse(inputs)
        if len(inputs) == 1 and fused is inputs[0]:
            fused = fused.clone()  # the activation is in place, and other nodes may read this map
        out: Tensor = self.bn(self.conv(self.act(fused)))
        return out


class FeatureNetwork(nn.Module):
    """Features of the backbone to one fused map for each level.

    Args:
        backbone_channels: channels of the backbone's levels P3, P4, ..., finest first.
        topology: the cell.
        width: channels of every fused map.
        depth: number of cells, each with its own weights.
        fusion: see `Fusion`.
        act: name of the activation before each node's convolution.
        padding: `same` or `symmetric`.
        bias: whether convolutions before a batch norm have a bias.
        separable: whether convolutions are depthwise separable instead of full.
        per_channel: whether fusion weights are for each channel instead of each map.
    """

    def __init__(
        self, backbone_channels: tuple[int, ...], topology: Topology, width: int, depth: int,
        fusion: str, act: str, padding: str, bias: bool, *, separable: bool = True, per_channel: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        low, high = topology.levels
        self.topology = topology
        self.padding = padding
        # Levels that the backbone lacks are made from its last one: a lateral, then max-pooling, level by level.
        last = backbone_channels[-1]
        has_extra = len(backbone_channels) < high - low + 1
        self.extra = Lateral(last, width, bias) if has_extra and last != width else nn.Identity()
        channels = dict(zip((f"in{low + i}" for i in range(high - low + 1)), backbone_channels, strict=False))
        self.cells = nn.ModuleList()
        for _ in range(depth):
            cell = nn.ModuleDict()
            for node in topology.nodes:
                input_channels = [channels.get(name, width) for name in node.inputs]
                cell[node.name] = NodeModule(
                    node, input_channels, width, fusion, act, padding, bias, separable, per_channel
                )
            self.cells.append(cell)
            channels = {}
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """[P3, P4, P5] of the backbone to [P3, ..., P7], each (B, width, h, w), finest first."""
        low, high = self.topology.levels
        inputs = list(features)
        if len(inputs) < high - low + 1:
            x = self.extra(inputs[-1])
            while len(inputs) < high - low + 1:
                half = (math.ceil(x.shape[2] / 2), math.ceil(x.shape[3] / 2))
                x = resize_map(x, half, self.padding)
                inputs.append(x)
        sizes = {low + i: (x.shape[2], x.shape[3]) for i, x in enumerate(inputs)}
        outputs = self.topology.outputs()
        for cell in self.cells:
            maps = {f"in{low + i}": x for i, x in enumerate(inputs)}
            for node, module in zip(self.topology.nodes, cell.children(), strict=True):
                maps[node.name] = module(maps, sizes[node.level])
            inputs = [maps[name] for name in outputs]
        return inputs
