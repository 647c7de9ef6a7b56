from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from efficientdet.family import find_spec
from efficientdet.inference.engines.fold import fold
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import FUSIONS, Fusion
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.weights.create import create_model


def trained_like(model: EfficientDet) -> EfficientDet:
    """Statistics and weights as after a training: nothing at its neutral value."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
        if isinstance(module, Fusion) and module.weights is not None:
            nn.init.uniform_(module.weights, -0.2, 1.0, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("d0", {}),
        ("lite0", {}),
        ("d0-symmetric", {}),
        *(("lite0", {"feature_network": network, "fusion": "fast"}) for network in TOPOLOGIES),
        *(("lite0", {"fusion": fusion, "fusion_per_channel": True}) for fusion in FUSIONS),
        ("lite0", {"separable": False}),
    ],
)
def test_same_function_without_batch_norms(name: str, choices: dict[str, object]) -> None:
    spec = dataclasses.replace(find_spec(name), depth=2, width=24)
    model = trained_like(create_model(spec, 5, **choices)).double()  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        for ours, expected in zip(folded(images), model(images), strict=True):
            for level, (a, b) in enumerate(zip(ours, expected, strict=True)):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=f"level {level}")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"fold changed {key} of the model"


def test_keeps_channels_last() -> None:
    model = create_model("lite0", 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    folded = fold(model)
    for name, module in folded.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last), name
