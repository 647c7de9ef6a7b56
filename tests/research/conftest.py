"""Feature networks and a detector with weights that are far from neutral."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from efficientdet.family import MODELS
from efficientdet.images.convert import RgbImage
from efficientdet.inference.detector import Detector
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import Fusion
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.network.topology import build_topology
from efficientdet.weights.info import CheckpointInfo, default_preprocessing

MakeNetwork = Callable[..., FeatureNetwork]


def randomized(network: FeatureNetwork) -> FeatureNetwork:
    for module in network.modules():
        if isinstance(module, Fusion) and module.weights is not None:
            nn.init.uniform_(module.weights, 0.2, 2.0)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="session")
def make_network() -> MakeNetwork:
    """Builds two cells of width 4, in double precision, from the name of a topology and a kind of fusion."""

    def make(name: str, fusion: str, *, per_channel: bool = False, channels: int = 4) -> FeatureNetwork:
        torch.manual_seed(0)
        network = FeatureNetwork(
            (channels, 5, 6),
            build_topology(name, (3, 7)),
            4,
            2,
            fusion,
            "swish",
            "same",
            False,
            per_channel=per_channel,
        )
        return randomized(network).double()

    return make


@pytest.fixture(scope="session")
def image() -> RgbImage:
    return np.random.default_rng(3).integers(0, 256, (130, 170, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def detector() -> Detector:
    """A network with random weights that finds many things everywhere."""
    spec = dataclasses.replace(
        MODELS["lite0"], width=16, depth=2, head_depth=1, image_size=96, fusion="fast", activation="swish"
    )
    names = ("cat", "dog", "owl")
    torch.manual_seed(2)
    model = EfficientDet(spec, len(names))
    randomized(model.feature_network)
    with torch.no_grad():
        for head in (model.class_head, model.box_head):
            assert head.predict.pointwise.bias is not None
            head.predict.pointwise.bias.fill_(0)
        model.class_head.predict.pointwise.weight.mul_(3)
        model.box_head.predict.pointwise.weight.mul_(0.5)
    info = CheckpointInfo(spec, names, (1, 2, 3), default_preprocessing(spec))
    return Detector(model, info, device="cpu", max_candidates=400)
