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
# Channels of a bottleneck's output, over its width.
EXPANSION = 4
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


class Block(nn.Module):
    """Convolutions with batch norms, called `conv1`, `bn1` and so on, and the shortcut around them (figure 5).

    A bottleneck has 1x1 to the width, 3x3, and 1x1 to four times the width; another block two 3x3.
    """

    def __init__(self, inputs: int, width: int, stride: int, has_bottleneck: bool) -> None:
        super().__init__()
        outputs = EXPANSION * width if has_bottleneck else width
        if has_bottleneck:
            convs = [_conv(inputs, width, 1), _conv(width, width, 3, stride), _conv(width, outputs, 1)]
        else:
            convs = [_conv(inputs, width, 3, stride), _conv(width, width, 3)]
        for number, conv in enumerate(convs, start=1):
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", batch_norm(conv.out_channels, EPSILON))
        self.depth = len(convs)
        is_same = stride == 1 and inputs == outputs
        shortcut = [] if is_same else [_conv(inputs, outputs, 1, stride), batch_norm(outputs, EPSILON)]
        self.downsample = nn.Sequential(*shortcut)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, ceil(h / stride), ceil(w / stride))."""
        branch = x
        for number in range(1, self.depth + 1):
            branch = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(branch))
            branch = self.relu(branch) if number < self.depth else branch
        out: Tensor = self.relu(branch + self.downsample(x))
        return out


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
        bottleneck = layout.has_bottleneck
        self.conv1, self.bn1 = _conv(3, STEM_CHANNELS, 7, 2), batch_norm(STEM_CHANNELS, EPSILON)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers, inputs = [], STEM_CHANNELS
        for i, (width, count) in enumerate(zip(WIDTHS, layout.repeats, strict=True)):
            outputs = width * (EXPANSION if bottleneck else 1)
            first = Block(inputs, width, 1 if i == 0 else 2, bottleneck)
            layers.append(nn.Sequential(first, *(Block(outputs, width, 1, bottleneck) for _ in range(count - 1))))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = tuple(width * (EXPANSION if bottleneck else 1) for width in WIDTHS[1:])
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
