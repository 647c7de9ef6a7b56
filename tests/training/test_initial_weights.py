"""A ResNet in training: published weights by their own names, frozen stages, and a rate for each stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from efficientdet.data.read_split import read_split
from efficientdet.errors import WeightsError
from efficientdet.images.letterbox import IMAGENET
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.resnet import ResNet
from efficientdet.training.config import TrainConfig
from efficientdet.training.initial_weights import start_backbone_from
from efficientdet.training.run import train
from efficientdet.training.schedule import parameter_groups
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.create import create_model
from efficientdet.weights.info import CheckpointInfo


@pytest.fixture
def network(shapes: ModuleType) -> EfficientDet:
    torch.manual_seed(0)
    return create_model(shapes.TINY, 2, backbone="resnet18")


@pytest.fixture
def start(network: EfficientDet, data: Path) -> Callable[[Path], list[str]]:
    """Starts the network's backbone from a file."""
    return lambda path: start_backbone_from(network, path, read_split(data, "train"), 64, IMAGENET)


@pytest.fixture
def published() -> dict[str, Tensor]:
    """The state of torchvision's resnet18 in all but its numbers: 1,000 classes, no counters in the older files."""
    torch.manual_seed(1)
    state = ResNet("resnet18").state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
    return state | {"fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}


@pytest.mark.parametrize("kind", ["new", "without counters", "wrapped"])
def test_torchvisions_weights_keep_their_names(
    kind: str, network: EfficientDet, start: Callable[[Path], list[str]], published: dict[str, Tensor], tmp_path: Path
) -> None:
    saved: dict[str, Any] = published
    if kind == "without counters":
        saved = {name: tensor for name, tensor in published.items() if not name.endswith("num_batches_tracked")}
    if kind == "wrapped":
        saved = {"state_dict": {f"module.{name}": tensor for name, tensor in published.items()}, "epoch": 90}
    torch.save(saved, tmp_path / "resnet18-f37072fd.pth")
    assert start(tmp_path / "resnet18-f37072fd.pth") == ["fc.weight", "fc.bias"]
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, published[name]), name


def test_weights_that_are_not_finite_are_refused(
    start: Callable[[Path], list[str]], published: dict[str, Tensor], tmp_path: Path
) -> None:
    published["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(published, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"nan\.pth: 1 tensors have NaN .*conv1\.weight"):
        start(tmp_path / "nan.pth")


def test_every_mismatch_is_listed_and_nothing_is_changed(
    network: EfficientDet, start: Callable[[Path], list[str]], published: dict[str, Tensor], tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    del published["layer1.0.bn1.bias"]
    published["layer5.weight"] = torch.zeros(3)
    published["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(published, tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as caught:
        start(tmp_path / "odd.pth")
    for part in (
        "odd.pth: 3 tensors do not fit resnet18:",
        "missing: layer1.0.bn1.bias (64,)",
        "unexpected: layer5.weight (3,)",
        "shape: conv1.weight is (64, 3, 3, 3), the model has (64, 3, 7, 7)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.backbone.state_dict().items())


def test_folded_weights_are_not_for_a_resnet(start: Callable[[Path], list[str]], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"x\.npz: folded weights of an EfficientNet; the backbone is resnet18"):
        start(tmp_path / "x.npz")


def test_another_detectors_resnet(
    shapes: ModuleType, network: EfficientDet, start: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    for name in ("resnet18", "resnet34"):
        other = create_model(shapes.TINY, 2, backbone=name)
        info = CheckpointInfo(other.spec, ("disc", "square"), (3, 7), IMAGENET)
        save_checkpoint(tmp_path / f"{name}.safetensors", other.state_dict(), info)
        if name == "resnet18":
            assert start(tmp_path / f"{name}.safetensors") == []
            pairs = zip(network.backbone.parameters(), other.backbone.parameters(), strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    with pytest.raises(WeightsError, match=r"resnet34\.safetensors: its backbone is resnet34, not resnet18"):
        start(tmp_path / "resnet34.safetensors")


def test_frozen_stages_of_a_resnet_do_not_move(shapes: ModuleType, data: Path, tmp_path: Path) -> None:
    spec = dataclasses.replace(shapes.TINY, backbone="resnet18")
    settings = shapes.SETTINGS | {"epochs": 1, "ema_decay": 0.0, "frozen_stages": 2}
    done = train(spec, data, out=tmp_path / "run", **settings)
    torch.manual_seed(0)
    fresh, saved = create_model(spec, 2).state_dict(), load_file(done.last)
    moved = {name for name, tensor in saved.items() if not torch.equal(tensor, fresh[name])}
    frozen = ("backbone.conv1.", "backbone.bn1.", "backbone.layer1.", "backbone.layer2.")
    assert not [name for name in moved if name.startswith(frozen)]
    assert {"backbone.layer3.0.conv1.weight", "backbone.layer4.1.bn2.running_mean"} <= moved


def test_each_stage_of_a_resnet_has_its_rate(network: EfficientDet) -> None:
    config = TrainConfig(learning_rate=1.0, backbone_rate=0.5, layer_decay=0.1)
    rates = {id(p): group["lr"] for group in parameter_groups(network, config) for p in group["params"]}
    expected = {"layer4.": 0.5, "layer3.": 0.05, "layer2.": 0.005, "layer1.": 5e-4, "conv1.": 5e-5, "bn1.": 5e-5}
    for name, parameter in network.named_parameters():
        part = name.removeprefix("backbone.")
        scale = next((rate for start, rate in expected.items() if part != name and part.startswith(start)), 1.0)
        assert rates.pop(id(parameter)) == pytest.approx(scale), name
    assert not rates


def test_each_stage_of_an_efficientnet_has_its_rate(shapes: ModuleType) -> None:
    config = TrainConfig(learning_rate=1.0, backbone_rate=1.0, layer_decay=0.5)
    model = create_model(shapes.TINY, 2)
    rates = {id(p): group["lr"] for group in parameter_groups(model, config) for p in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert named["backbone.blocks.6.0.conv_pw.weight"] == 1.0
    assert named["backbone.blocks.0.0.bn1.weight"] == 0.5**6
    assert named["backbone.conv_stem.weight"] == named["backbone.bn1.bias"] == 0.5**7
    assert named["class_head.predict.pointwise.bias"] == 1.0
