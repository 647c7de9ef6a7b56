"""Every feature network with every fusion, translated to ONNX, gives in ONNX Runtime what it gives in torch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efficientdet.family import find_spec
from efficientdet.inference.engines.onnx_graph import onnx_network
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.weights.create import create_model

SMALL = dataclasses.replace(find_spec("lite0"), width=16, depth=1, head_depth=1)
# Each network once and each fusion once: the whole matrix takes minutes.
FEW = [(name, "fast") for name in TOPOLOGIES] + [("bifpn", fusion) for fusion in FUSIONS if fusion != "fast"]
# The others are slow.
BY_DEFAULT = [("nas-fpn", "fast"), ("bifpn", "fast"), ("bifpn", "softmax")]


class ShortBackbone(nn.Module):
    """Three convolutions instead of a backbone, so that what is translated is the feature network and the heads."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = channels
        inputs = (3, *channels[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1)
            for before, after, stride in zip(inputs, channels, (8, 2, 2), strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        for conv in self.convs:
            images = conv(images)
            features.append(images)
        return features


def shuffle(model: EfficientDet) -> EfficientDet:
    """Give every parameter and statistic a value of its own, fusion weights of both signs included."""
    torch.manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
        for name, parameter in model.named_parameters():
            if name.endswith("fuse.weights"):
                parameter.add_(torch.randn_like(parameter))
    return model.eval()


def check(model: EfficientDet, size: tuple[int, int]) -> None:
    """Outputs within 1e-4 of the largest, on a batch of two."""
    import onnxruntime

    graph = onnx_network(model, size)
    biases = [node.input[2] for node in graph.graph.node if node.op_type == "Conv" and len(node.input) > 2]
    assert len(set(biases)) == len(biases) > 10  # OpenVINO fuses none that is shared
    session: Any = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, *size)
    found = session.run(["class_logits", "box_deltas"], {"images": images.numpy()})
    with torch.no_grad():
        expected = model(images)
    for values, levels in zip(found, expected, strict=True):
        wanted = torch.cat(levels, 1)
        assert values.shape == wanted.shape
        assert (torch.from_numpy(values) - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("name", "fusion"), [case if case in BY_DEFAULT else pytest.param(*case, marks=pytest.mark.slow) for case in FEW]
)
def test_each_network_and_each_fusion(name: str, fusion: str) -> None:
    model = create_model(SMALL, 2, feature_network=name, fusion=fusion)
    model.backbone = ShortBackbone(model.backbone.channels)  # type: ignore[assignment]
    check(shuffle(model), (96, 160))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["lite0", "d0"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_whole_matrix(name: str, fusion: str, spec: str) -> None:
    check(shuffle(create_model(spec, 2, feature_network=name, fusion=fusion)), (128, 128))
