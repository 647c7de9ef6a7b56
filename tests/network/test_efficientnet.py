"""The backbones: channels, strides, depths, and stochastic depth."""

from __future__ import annotations

import math

import pytest
import torch

from efficientdet.errors import UnknownNameError
from efficientdet.network.efficientnet import SCALES, DropPath, EfficientNet, MBConv, scale_channels

# (P3, P4, P5) channels, stem channels, blocks: the released checkpoints.
FACTS = {
    "b0": ((40, 112, 320), 32, 16),
    "b1": ((40, 112, 320), 32, 23),
    "b2": ((48, 120, 352), 32, 23),
    "b3": ((48, 136, 384), 40, 26),
    "b4": ((56, 160, 448), 48, 32),
    "b5": ((64, 176, 512), 48, 39),
    "b6": ((72, 200, 576), 56, 45),
    "b7": ((80, 224, 640), 64, 55),
    "lite0": ((40, 112, 320), 32, 16),
    "lite1": ((40, 112, 320), 32, 21),
    "lite2": ((48, 120, 352), 32, 21),
    "lite3": ((48, 136, 384), 32, 24),
    "lite4": ((56, 160, 448), 32, 30),
}


@pytest.mark.parametrize("name", FACTS)
def test_channels_and_depths(name: str) -> None:
    with torch.device("meta"):
        backbone = EfficientNet(name)
        features = backbone(torch.zeros(1, 3, 64, 96))
    channels, stem, blocks = FACTS[name]
    assert backbone.channels == channels
    assert backbone.conv_stem.out_channels == stem
    assert sum(isinstance(module, MBConv) for module in backbone.modules()) == blocks
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)]
    assert [tuple(x.shape) for x in features] == expected


def test_facts_cover_every_backbone() -> None:
    assert set(FACTS) == set(SCALES) - {"lite-tiny"}  # of the tests


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [(1, 1), (64, 256), (130, 257), (33, 7)])
def test_any_size(size: tuple[int, int], padding: str) -> None:
    with torch.device("meta"):
        features = EfficientNet("lite0", padding)(torch.zeros(2, 3, *size))
    for x, stride in zip(features, (8, 16, 32), strict=True):
        assert tuple(x.shape[2:]) == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))


def test_lite_has_neither_squeeze_and_excite_nor_swish() -> None:
    with torch.device("meta"):
        lite, full = EfficientNet("lite0"), EfficientNet("b0")
    assert not any("se." in name for name, _ in lite.named_parameters())
    assert not any(isinstance(module, torch.nn.SiLU) for module in lite.modules())
    assert any("se.conv_reduce" in name for name, _ in full.named_parameters())


def test_epsilon_reaches_every_batch_norm() -> None:
    with torch.device("meta"):
        backbone = EfficientNet("b0", epsilon=1e-5)
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and {norm.eps for norm in norms} == {1e-5}


@pytest.mark.parametrize(
    ("channels", "multiplier", "expected"),
    [(32, 1.0, 32), (320, 1.1, 352), (112, 1.1, 120), (16, 0.1, 8), (12, 1.0, 16)],
)
def test_channel_rounding(channels: int, multiplier: float, expected: int) -> None:
    assert scale_channels(channels, multiplier) == expected


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    x = torch.ones(4000, 2, 1, 1)
    dropped = layer(x)
    per_sample = dropped.flatten(1)
    assert per_sample.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(per_sample[:, 0], per_sample[:, 1])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layer.eval()(x), x)


def test_drop_path_grows_with_depth() -> None:
    with torch.device("meta"):
        backbone = EfficientNet("b0", drop_path=0.2)
    rates = [module.probability for module in backbone.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.2 * i / 16 for i in range(16)])


def test_unknown_backbone() -> None:
    with pytest.raises(UnknownNameError, match="unknown backbone 'b8'"):
        EfficientNet("b8")
