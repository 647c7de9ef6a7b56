"""The backbone that a spec names: an EfficientNet, a ResNet, or a model of timm."""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientdet.errors import MissingExtraError, SettingError, UnknownNameError, unknown_name
from efficientdet.family import ModelSpec
from efficientdet.network.efficientnet import SCALES, EfficientNet
from efficientdet.network.resnet import RESNETS, ResNet

TIMM_PREFIX = "timm:"
# All names, for errors.
BACKBONES = (*SCALES, *RESNETS, f"{TIMM_PREFIX}NAME")
# Strides of P3, P4 and P5.
STRIDES = (8, 16, 32)


class TimmBackbone(nn.Module):
    """A feature extractor of timm (`pip install timm`), with random weights.

    Args:
        name: timm's name of the model, such as `convnext_atto`.

    Attributes:
        net: timm's module.
        channels: channels of P3, P4 and P5.

    Raises:
        MissingExtraError: timm cannot be imported.
        UnknownNameError: timm has no such model.
        SettingError: the model does not give features of strides 8, 16 and 32.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = _import_timm(name)
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:8]) or "see timm.list_models()"
            raise UnknownNameError(f"unknown backbone '{TIMM_PREFIX}{name}': timm has no such model. Near: {near}.")
        self.net = _create(timm, name)
        self.channels: tuple[int, ...] = tuple(self.net.feature_info.channels())
        self.is_channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")

    def stages(self) -> list[list[nn.Module]]:
        """An empty list: the stages of timm's models are not known."""
        return []

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized images to [P3, P4, P5], each (B, channels[i], ceil(H / stride), ceil(W / stride))."""
        height, width = images.shape[2:]
        # Stems without padding round down: pad to a multiple of P5's stride, and crop the features.
        images = functional.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        features = self.net(images)
        if self.is_channels_last:
            features = [x.permute(0, 3, 1, 2).contiguous() for x in features]
        sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
        return [x[:, :, :rows, :columns] for x, (rows, columns) in zip(features, sizes, strict=True)]


Backbone: TypeAlias = EfficientNet | ResNet | TimmBackbone


def build_backbone(spec: ModelSpec, drop_path: float = 0.0) -> Backbone:
    """Build the backbone that a spec names, with random weights.

    Args:
        spec: gives `backbone`, and for an EfficientNet `padding` and `backbone_epsilon`.
        drop_path: probability of stochastic depth in the last block; of an EfficientNet only.

    Returns:
        A module that maps (B, 3, H, W) images to [P3, P4, P5]. Its attribute `channels` has their channels; its method
        `stages` gives the modules of the stem and of each stage, or an empty list if they are not known.

    Raises:
        UnknownNameError: there is no such backbone.
        SettingError: drop_path is set for another backbone than an EfficientNet, or timm's model does not suit.
        MissingExtraError: timm is needed and not installed.
    """
    name = spec.backbone
    if name in SCALES:
        return EfficientNet(name, spec.padding, drop_path, spec.backbone_epsilon)
    if name not in RESNETS and not name.startswith(TIMM_PREFIX):
        raise unknown_name("backbone", name, BACKBONES)
    if drop_path:
        raise SettingError(f"drop_path is {drop_path}, but backbone {name} has no stochastic depth; set it to 0")
    return ResNet(name) if name in RESNETS else TimmBackbone(name.removeprefix(TIMM_PREFIX))


def backbone_title(name: str) -> str:
    """A backbone's name for people: `EfficientNet-B0`, `EfficientNet-Lite0`, `ResNet-50`, `NAME (timm)`."""
    if name.startswith(TIMM_PREFIX):
        return f"{name.removeprefix(TIMM_PREFIX)} (timm)"
    if name.startswith("resnet"):
        return name.replace("resnet", "ResNet-")
    return f"EfficientNet-{name.capitalize()}"


def _import_timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"backbone '{TIMM_PREFIX}{name}' needs timm, which cannot be imported ({error}); run: pip install timm"
        ) from error


def _create(timm: Any, name: str) -> Any:
    """Timm's module with the feature maps of the strides of P3, P4 and P5; layers after P5 are not built."""
    options = {"features_only": True, "pretrained": False}
    try:
        with torch.device("meta"):
            info = timm.create_model(name, **options).feature_info
        strides = info.reduction()
        if not set(STRIDES) <= set(strides):
            raise SettingError(
                f"backbone '{TIMM_PREFIX}{name}' gives features of strides {sorted(set(strides))}; a detector needs "
                f"{', '.join(map(str, STRIDES))}"
            )
        indices = tuple(info.out_indices[strides.index(stride)] for stride in STRIDES)
        return timm.create_model(name, **options, out_indices=indices)
    # What timm raises for a model that gives no features.
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        raise SettingError(f"backbone '{TIMM_PREFIX}{name}' gives no features: {error}") from error
