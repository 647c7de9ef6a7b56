"""EfficientNet backbones B0-B7 and Lite0-Lite4, as feature extractors of P3, P4 and P5.

Tan and Le 2019 (arXiv 1905.11946), section 4. The Lite variants have no squeeze-and-excite, use ReLU6, and do not scale
stem and head (tensorflow/tpu efficientnet_lite_builder.py). The classifier head is not built.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from efficientdet.errors import unknown_name
from efficientdet.network.layers import BATCH_NORM_EPSILON, Conv2d, activation, batch_norm


class Stage(NamedTuple):
    """One row of EfficientNet's Table 1, before scaling."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
# The stages whose outputs are P3, P4 and P5.
TAPS = (2, 4, 6)
SQUEEZE_RATIO = 0.25

# name: (width multiplier, depth multiplier)
SCALES = {
    "b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4),
    "b4": (1.4, 1.8), "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1),
    "lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4), "lite4": (1.4, 1.8),
}  # fmt: skip


def scale_channels(channels: int, multiplier: float) -> int:
    """Round channels * multiplier to a multiple of 8, never more than 10 % down."""
    scaled = channels * multiplier
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018): global pooling, two 1x1 convolutions, and a gate for each channel."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU(inplace=True)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape, each channel multiplied by its gate."""
        gate: Tensor = self.conv_expand(self.act(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the residual branch of random samples in training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape; the other samples are scaled so that the mean stays the same."""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < keep
        return x * mask.to(x.dtype) / keep


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise, squeeze-and-excite, project; residual if the shape stays the same.

    With expansion 1 (the first stage) there is no expanding convolution, and the projection is called conv_pw, as in
    other implementations, whose weights keep their names here.
    """

    def __init__(
        self, inputs: int, outputs: int, stage: Stage, stride: int, act: str, excite: bool,
        padding: str, drop_path: float, epsilon: float,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = inputs * stage.expansion
        self.expands = stage.expansion != 1
        self.has_residual = stride == 1 and inputs == outputs
        if self.expands:
            self.conv_pw = Conv2d(inputs, hidden, 1)
            self.bn1 = batch_norm(hidden, epsilon)
        self.conv_dw = Conv2d(hidden, hidden, stage.kernel, stride, groups=hidden, padding=padding)
        middle, last = (batch_norm(hidden, epsilon), batch_norm(outputs, epsilon))
        self.se = SqueezeExcite(hidden, max(1, int(inputs * SQUEEZE_RATIO))) if excite else nn.Identity()
        if self.expands:
            self.bn2, self.conv_pwl, self.bn3 = middle, Conv2d(hidden, outputs, 1), last
        else:
            self.bn1, self.conv_pw, self.bn2 = middle, Conv2d(hidden, outputs, 1), last
        self.act = activation(act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, ceil(h / stride), ceil(w / stride))."""
        shortcut = x
        if self.expands:
            x = self.act(self.bn1(self.conv_pw(x)))
            x = self.act(self.bn2(self.conv_dw(x)))
            x = self.bn3(self.conv_pwl(self.se(x)))
        else:
            x = self.act(self.bn1(self.conv_dw(x)))
            x = self.bn2(self.conv_pw(self.se(x)))
        return self.drop_path(x) + shortcut if self.has_residual else x


class EfficientNet(nn.Module):
    """The feature extractor.

    Args:
        name: `b0`-`b7` or `lite0`-`lite4`.
        padding: `same` or `symmetric`.
        drop_path: probability of dropping the residual branch of the last block in training; it grows linearly from 0
            at the first.
        epsilon: epsilon of every batch norm.

    Raises:
        UnknownNameError: the name is not in the table.
    """

    def __init__(
        self, name: str, padding: str = "same", drop_path: float = 0.0, epsilon: float = BATCH_NORM_EPSILON
    ) -> None:
        super().__init__()
        if name not in SCALES:
            raise unknown_name("backbone", name, SCALES)
        width, depth = SCALES[name]
        lite = name.startswith("lite")
        act = "relu6" if lite else "swish"
        stem = STEM_CHANNELS if lite else scale_channels(STEM_CHANNELS, width)
        self.conv_stem = Conv2d(3, stem, 3, 2, padding=padding)
        self.bn1 = batch_norm(stem, epsilon)
        self.act = activation(act)

        # Lite does not repeat its first and last stage.
        repeats = [
            stage.repeats if lite and i in (0, len(STAGES) - 1) else math.ceil(stage.repeats * depth)
            for i, stage in enumerate(STAGES)
        ]
        blocks, inputs, built = [], stem, 0
        for stage, count in zip(STAGES, repeats, strict=True):
            outputs = scale_channels(stage.channels, width)
            rows = []
            for i in range(count):
                stride = stage.stride if i == 0 else 1
                drop = drop_path * built / sum(repeats)
                rows.append(MBConv(inputs, outputs, stage, stride, act, not lite, padding, drop, epsilon))
                inputs, built = outputs, built + 1
            blocks.append(nn.Sequential(*rows))
        self.blocks = nn.ModuleList(blocks)
        self.channels = tuple(scale_channels(STAGES[i].channels, width) for i in TAPS)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stages(self) -> list[list[nn.Module]]:
        """The modules of the stem, then those of each stage."""
        return [[self.conv_stem, self.bn1], *([stage] for stage in self.blocks)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized images to [P3, P4, P5], each (B, channels[i], ceil(H / stride), ceil(W / stride))."""
        x = self.act(self.bn1(self.conv_stem(images)))
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                features.append(x)
        return features
