"""The choice of a backbone by its name, and the adapter to timm: with a stand-in here, with timm itself where it is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efficientdet.errors import MissingExtraError, SettingError, UnknownNameError, WeightsError
from efficientdet.family import MODELS
from efficientdet.images.letterbox import IMAGENET
from efficientdet.network.backbones import TimmBackbone, backbone_title, build_backbone
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.efficientnet import EfficientNet
from efficientdet.network.resnet import ResNet
from efficientdet.weights.checkpoint import load_checkpoint, save_checkpoint
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import to_foreign
from efficientdet.weights.info import CheckpointInfo

ROOT = Path(__file__).resolve().parents[2]
PYTHON_WITH_TIMM = ROOT / ".bench" / "effdet" / "bin" / "python"
NARROW = dataclasses.replace(MODELS["d0"], width=16, depth=1, head_depth=1, image_size=64)


def small(backbone: str, **settings: Any) -> EfficientDet:
    torch.manual_seed(0)
    return create_model(NARROW, 2, backbone=backbone, **settings)


def round_trip(model: EfficientDet, path: Path) -> EfficientDet:
    info = CheckpointInfo(model.spec, ("a", "b"), (1, 2), IMAGENET)
    save_checkpoint(path, model.state_dict(), info)
    return load_checkpoint(path)[0]


def assert_same(expected: tuple[list[Tensor], list[Tensor]], found: tuple[list[Tensor], list[Tensor]]) -> None:
    """Equal but for the last bits: tensors that lie in a file are aligned otherwise."""
    for x, y in zip([*expected[0], *expected[1]], [*found[0], *found[1]], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("b0", EfficientNet), ("lite1", EfficientNet), ("resnet50", ResNet)])
def test_the_name_decides(name: str, kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        assert type(build_backbone(dataclasses.replace(NARROW, backbone=name))) is kind


@pytest.mark.parametrize("name", ["resnet51", "timm", "b8"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown backbone '{name}'.*b0, .*lite4, resnet18, .*timm:NAME"):
        build_backbone(dataclasses.replace(NARROW, backbone=name))


def test_stochastic_depth_is_an_efficientnets() -> None:
    with pytest.raises(SettingError, match="drop_path is 0.2, but backbone resnet18 has no stochastic depth"):
        small("resnet18", drop_path=0.2)


def test_the_normalization_goes_with_the_backbone() -> None:
    assert create_model("lite0", 2, backbone="resnet18").spec.normalization == "imagenet"
    assert small("lite0").spec.normalization == "lite"
    assert create_model("lite0", 2).spec.normalization == "lite"


def test_titles() -> None:
    titles = {"b0": "EfficientNet-B0", "lite3": "EfficientNet-Lite3", "resnet50": "ResNet-50", "timm:x": "x (timm)"}
    assert {name: backbone_title(name) for name in titles} == titles


def test_a_detector_on_a_resnet_learns_and_comes_back_from_its_file(tmp_path: Path) -> None:
    model = small("resnet18", feature_network="fpn", separable=False)
    assert model.spec.backbone == "resnet18"
    logits, deltas = model(torch.randn(2, 3, 64, 70))
    assert sum(x.shape[1] for x in logits) == len(model.anchors((64, 70)))
    sum((x.square().mean() for x in [*logits, *deltas]), torch.zeros(())).backward()
    assert all(p.grad is not None for p in model.parameters())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model.eval()(images), round_trip(model, tmp_path / "r.safetensors")(images)
    assert_same(expected, found)


def test_only_effdet_has_a_resnets_names() -> None:
    model = small("resnet18")
    assert {f"backbone.{name}" for name in model.backbone.state_dict()} <= set(to_foreign(model, "effdet"))
    for target in ("zylo", "tensorflow"):
        with pytest.raises(WeightsError, match=r"'backbone\.conv1\.weight' has no counterpart"):
            to_foreign(model, target)


# The stand-in: what timm does at the call that the adapter makes.


class _Info:
    def __init__(self, strides: list[int], channels: list[int], indices: tuple[int, ...]) -> None:
        self.out_indices = indices
        self._strides, self._channels = strides, channels

    def reduction(self) -> list[int]:
        return [self._strides[i] for i in self.out_indices]

    def channels(self) -> list[int]:
        return [self._channels[i] for i in self.out_indices]


class _Features(nn.Module):
    """Patches of 4, 2, 2 and 2 pixels, as ConvNeXt's: maps round down. One constant is in no state dict."""

    def __init__(self, strides: list[int], indices: tuple[int, ...], output_fmt: str) -> None:
        super().__init__()
        channels = [4 * (i + 1) for i in range(len(strides))]
        self.feature_info = _Info(strides, channels, indices)
        self.output_fmt = output_fmt
        steps = [b // a for a, b in zip([1, *strides], strides, strict=False)]
        pairs = zip([3, *channels], channels, steps, strict=False)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, step, step) for a, b, step in list(pairs)[: max(indices) + 1])
        self.register_buffer("two", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(x) * self.two
            if i in self.feature_info.out_indices:
                features.append(x.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else x)
        return features


STRIDES = {"net": [4, 8, 16, 32], "nhwc": [4, 8, 16, 32], "deep": [8, 16, 32, 64], "plain": [16, 16, 16]}


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The stand-in as `timm`; gives the calls of create_model."""
    calls = []

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        assert options.pop("features_only") and not pretrained
        calls.append({"name": name, **options})
        if name == "blind":
            raise RuntimeError("features_only not implemented")
        indices = options.get("out_indices", tuple(range(len(STRIDES[name]))))
        return _Features(STRIDES[name], indices, "NHWC" if name == "nhwc" else "NCHW")

    module = types.ModuleType("timm")
    vars(module).update(
        create_model=create_model,
        is_model=lambda name: name in {*STRIDES, "blind"},
        list_models=lambda pattern: [name for name in STRIDES if pattern.strip("*") in name],
    )
    monkeypatch.setitem(sys.modules, "timm", module)
    yield calls


@pytest.mark.parametrize(
    ("name", "indices", "channels"), [("net", (1, 2, 3), (8, 12, 16)), ("deep", (0, 1, 2), (4, 8, 12))]
)
def test_the_maps_of_the_right_strides_are_asked_for(
    timm: list[dict[str, Any]], name: str, indices: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    backbone = TimmBackbone(name)
    assert timm[-1] == {"name": name, "out_indices": indices}
    assert backbone.channels == channels
    # Nothing behind P5 is built, so every weight learns.
    features = backbone(torch.randn(1, 3, 64, 64))
    sum((x.square().mean() for x in features), torch.zeros(())).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["net", "nhwc"])
@pytest.mark.parametrize("size", [(64, 96), (1, 1), (130, 257), (33, 7)])
def test_maps_have_the_sizes_that_the_anchors_expect(size: tuple[int, int], name: str) -> None:
    features = TimmBackbone(name)(torch.randn(2, 3, *size))
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip((8, 12, 16), (8, 16, 32), strict=True)]
    assert [tuple(x.shape) for x in features] == expected
    model = small(f"timm:{name}").eval()
    with torch.inference_mode():
        logits, _ = model(torch.randn(1, 3, *size))
    assert sum(x.shape[1] for x in logits) == len(model.anchors(size))


@pytest.mark.usefixtures("timm")
def test_a_map_with_channels_last_is_the_same_map() -> None:
    torch.manual_seed(0)
    first, second = TimmBackbone("net"), TimmBackbone("nhwc")
    second.load_state_dict(first.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for x, y in zip(first(images), second(images), strict=True):
            assert torch.equal(x, y)


@pytest.mark.usefixtures("timm")
def test_a_detector_on_timm_comes_back_from_its_file_with_its_constants(tmp_path: Path) -> None:
    model = small("timm:net").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model(images), round_trip(model, tmp_path / "t.safetensors")(images)
    assert_same(expected, found)


@pytest.mark.usefixtures("timm")
def test_effdet_has_timms_own_names() -> None:
    names = {name for name in to_foreign(small("timm:net")) if name.startswith("backbone.")}
    assert names == {f"backbone.stages.{i}.{leaf}" for i in range(4) for leaf in ("weight", "bias")}


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("ne", UnknownNameError, "unknown backbone 'timm:ne': timm has no such model. Near: net"),
        ("plain", SettingError, r"'timm:plain' gives features of strides \[16\]; a detector needs 8, 16, 32"),
        ("blind", SettingError, "'timm:blind' gives no features: features_only not implemented"),
    ],
)
def test_what_does_not_suit_is_refused(name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        small(f"timm:{name}")


@pytest.mark.usefixtures("timm")
def test_stochastic_depth_is_not_timms() -> None:
    with pytest.raises(SettingError, match="drop_path is 0.1, but backbone timm:net has no stochastic depth"):
        small("timm:net", drop_path=0.1)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="'timm:convnext_atto' needs timm.*run: pip install timm$"):
        small("timm:convnext_atto")


# timm and torchvision themselves, where `make bench` has put them.

REAL = """
import dataclasses, sys, pathlib, tempfile, torch, timm, torchvision
from efficientdet.family import MODELS
from efficientdet.images.letterbox import IMAGENET
from efficientdet.weights.create import create_model
from efficientdet.network.resnet import RESNETS, ResNet
from efficientdet.weights.checkpoint import load_checkpoint, save_checkpoint
from efficientdet.weights.info import CheckpointInfo

spec = dataclasses.replace(MODELS["d0"], width=16, depth=1, head_depth=1)
for name in ("convnext_atto", "mobilenetv3_small_050", "resnetblur18", "efficientformerv2_s0"):
    model = create_model(spec, 2, backbone=f"timm:{name}")
    size = (224, 224) if name.startswith("efficientformer") else (90, 130)
    outputs = model(torch.randn(2, 3, *size))
    assert sum(x.shape[1] for x in outputs[0]) == len(model.anchors(size)), name
    sum(x.square().mean() for part in outputs for x in part).backward()
    assert all(p.grad is not None for p in model.parameters()), name
    path = pathlib.Path(sys.argv[1]) / f"{name}.safetensors"
    save_checkpoint(path, model.state_dict(), CheckpointInfo(model.spec, ("a", "b"), (1, 2), IMAGENET))
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected, found = model.eval()(images), load_checkpoint(path)[0](images)
    for a, b in zip(expected, found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)

backbone = create_model(spec, 2, backbone="timm:swin_tiny_patch4_window7_224").backbone  # its maps are NHWC
shapes = [tuple(x.shape) for x in backbone(torch.randn(1, 3, 224, 224))]
assert shapes == [(1, 192, 28, 28), (1, 384, 14, 14), (1, 768, 7, 7)]

for name, kind in (("vit_tiny_patch16_224", "SettingError"), ("convnext_at", "UnknownNameError")):
    try:
        create_model(spec, 2, backbone=f"timm:{name}")
    except ValueError as error:
        assert type(error).__name__ == kind
        print(error)
    else:
        raise AssertionError(name)

for name in RESNETS:
    torch.manual_seed(0)
    theirs, ours = getattr(torchvision.models, name)().eval(), ResNet(name).eval()
    state = theirs.state_dict()
    assert [k for k in state if not k.startswith("fc.")] == list(ours.state_dict())
    assert set(ours.load_state_dict(state, strict=False).unexpected_keys) == {"fc.weight", "fc.bias"}
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images)))))
        for layer, found in zip((theirs.layer2, theirs.layer3, theirs.layer4), ours(images)):
            x = layer(x)
            assert torch.equal(x, found), name
print("done")
"""


@pytest.mark.slow
def test_timm_and_torchvision_themselves(tmp_path: Path) -> None:
    if not PYTHON_WITH_TIMM.is_file():
        pytest.skip(f"{PYTHON_WITH_TIMM} is missing; `make bench` puts it there")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON_WITH_TIMM, "-c", REAL, tmp_path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "unknown backbone 'timm:convnext_at': timm has no such model. Near: convnext_atto" in done.stdout
    assert "'timm:vit_tiny_patch16_224' gives features of strides [16]; a detector needs 8, 16, 32" in done.stdout
