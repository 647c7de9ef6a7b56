"""ResNet backbones, for comparisons such as the paper's with ResNet50 + FPN (section 6.1, Table 4).

He et al. 2016 (arXiv 1512.03385), Table 1, version 1.5: the stride is in the bottleneck's 3x3 convolution. The modules
are named as in torchvision, whose ImageNet weights fit. The classifier is not built.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from efficientdet.network.layers import Conv2d, batch_norm

EPSILON = 1e-5
STEM_CHANNELS = 64
# Channels inside the blocks of `layer1` to `layer4`.
WIDTHS = (64, 128, 256, 512)


class Layout(NamedTuple):
    """One column of ResNet's Table 1: the kind of block, and their number in `layer1` to `layer4`."""

    has_bottleneck: bool
    repeats: tuple[int, int, int, int]


RESNETS = {
    "resnet18": Layout(False, (2, 2, 2, 2)),
    "resnet34": Layout(False, (3, 4, 6, 3)),
    "resnet50": Layout(True, (3, 4, 6, 3)),
    "resnet101": Layout(True, (3, 4, 23, 3)),
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(inputs, outputs, kernel, stride, padding="symmetric")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), batch_norm(width, EPSILON)
        self.conv2, self.bn2 = _conv(width, width, 3), batch_norm(width, EPSILON)
        self.downsample = _shortcut(inputs, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, width, ceil(h / stride), ceil(w / stride))."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        out: Tensor = self.relu(branch + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1 convolution to the width, 3x3, 1x1 to four times the width, and the shortcut around them."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1, self.bn1 = _conv(inputs, width, 1), batch_norm(width, EPSILON)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), batch_norm(width, EPSILON)
        self.conv3, self.bn3 = _conv(width, outputs, 1), batch_norm(outputs, EPSILON)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, 4 * width, ceil(h / stride), ceil(w / stride))."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        out: Tensor = self.relu(branch + self.downsample(x))
        return out


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), batch_norm(outputs, EPSILON))


class ResNet(nn.Module):
    """The feature extractor.

    Args:
        name: a key of `RESNETS`.

    Attributes:
        channels: channels of P3, P4 and P5.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        layout = RESNETS[name]
        block = Bottleneck if layout.has_bottleneck else BasicBlock
        self.conv1, self.bn1 = _conv(3, STEM_CHANNELS, 7, 2), batch_norm(STEM_CHANNELS, EPSILON)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers, inputs = [], STEM_CHANNELS
        for i, (width, count) in enumerate(zip(WIDTHS, layout.repeats, strict=True)):
            outputs = block.expansion * width
            first = block(inputs, width, 1 if i == 0 else 2)
            layers.append(nn.Sequential(first, *(block(outputs, width, 1) for _ in range(count - 1))))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = tuple(block.expansion * width for width in WIDTHS[1:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[list[nn.Module]]:
        """The modules of the stem, then those of each stage."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized images to [P3, P4, P5], each (B, channels[i], ceil(H / stride), ceil(W / stride))."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        p3 = self.layer2(x)
        p4 = self.layer3(p3)
        return [p3, p4, self.layer4(p4)]
