"""ResNet: torchvision's names and sizes, and the paper's formula written out once more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from efficientdet.network.resnet import RESNETS, ResNet

# Parameters of torchvision's models less their classifier (fc), channels of P3 to P5, blocks.
FACTS = {
    "resnet18": (11_176_512, (128, 256, 512), 8),
    "resnet34": (21_284_672, (128, 256, 512), 16),
    "resnet50": (23_508_032, (512, 1024, 2048), 16),
    "resnet101": (42_500_160, (512, 1024, 2048), 33),
}


def test_facts_cover_every_resnet() -> None:
    assert set(FACTS) == set(RESNETS)


@pytest.mark.parametrize("name", FACTS)
def test_parameters_and_maps(name: str) -> None:
    with torch.device("meta"):
        backbone = ResNet(name)
        features = backbone(torch.zeros(1, 3, 64, 96))
    parameters, channels, blocks = FACTS[name]
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert backbone.channels == channels
    assert sum(key.endswith("conv2.weight") for key in backbone.state_dict()) == blocks
    assert [tuple(x.shape) for x in features] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("size", [(1, 1), (64, 256), (130, 257), (33, 7)])
def test_any_size(size: tuple[int, int], name: str) -> None:
    with torch.device("meta"):
        features = ResNet(name)(torch.zeros(2, 3, *size))
    for x, stride in zip(features, (8, 16, 32), strict=True):
        assert tuple(x.shape[2:]) == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))


def literal(images: Tensor, state: dict[str, Tensor], repeats: tuple[int, ...], convolutions: int) -> list[Tensor]:
    """ResNet v1.5 from torchvision's names alone: 3 convolutions a block for a bottleneck, 2 for a basic block."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]

    x = functional.max_pool2d(conv_norm(images, "conv1", "bn1", 2).relu(), 3, 2, 1)
    features = []
    for layer, count in enumerate(repeats, start=1):
        for i in range(count):
            block, stride = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1
            shortcut = x
            if f"{block}.downsample.0.weight" in state:
                shortcut = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            strided = 2 if convolutions == 3 else 1
            for k in range(1, convolutions + 1):
                x = conv_norm(x, f"{block}.conv{k}", f"{block}.bn{k}", stride if k == strided else 1)
                x = x.relu() if k < convolutions else (x + shortcut).relu()
        features.append(x)
    return features[1:]


@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 2), ("resnet50", 3)])
def test_the_formula(name: str, convolutions: int) -> None:
    torch.manual_seed(0)
    backbone = ResNet(name).eval()
    for key, tensor in backbone.state_dict().items():
        if "running" in key or ("bn" in key and "bias" in key):
            tensor.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 70, 45)
    with torch.inference_mode():
        expected = literal(images, backbone.state_dict(), RESNETS[name].repeats, convolutions)
        for found, want in zip(backbone(images), expected, strict=True):
            assert torch.allclose(found, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_kernels_begin_as_he_says() -> None:
    torch.manual_seed(0)
    backbone = ResNet("resnet18")
    kernel = backbone.get_parameter("layer4.1.conv2.weight")
    assert float(kernel.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    backbone = ResNet("resnet18").train()
    features = backbone(torch.randn(2, 3, 64, 64))
    sum((x.square().mean() for x in features), torch.zeros(())).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in backbone.parameters())


def test_the_stages_are_all_of_it() -> None:
    with torch.device("meta"):
        backbone = ResNet("resnet50")
    stages = backbone.stages()
    assert len(stages) == 5
    listed = [id(p) for modules in stages for module in modules for p in module.parameters()]
    assert sorted(listed) == sorted(map(id, backbone.parameters()))
