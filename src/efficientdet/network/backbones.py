"""Which backbone a spec's name means: an EfficientNet, a ResNet, or one that timm has."""

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
# For errors: every name there is.
BACKBONES = (*SCALES, *RESNETS, f"{TIMM_PREFIX}NAME")
# Of P3, P4 and P5.
STRIDES = (8, 16, 32)


class TimmBackbone(nn.Module):
    """A feature extractor of timm (`pip install timm`), with fresh weights.

    Args:
        name: what timm calls it, such as `convnext_atto`.

    Attributes:
        net: timm's module.
        channels: of P3, P4 and P5.

    Raises:
        MissingExtraError: timm cannot be imported.
        UnknownNameError: timm has no such model.
        SettingError: it gives no features, or not those of strides 8, 16 and 32.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = _import_timm(name)
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:8]) or "see timm.list_models()"
            raise UnknownNameError(f"unknown backbone '{TIMM_PREFIX}{name}': timm has no such model. Near: {near}.")
        self.net = _create(timm, name, _indices(timm, name))
        self.channels: tuple[int, ...] = tuple(self.net.feature_info.channels())
        self.is_channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")

    def stages(self) -> list[list[nn.Module]]:
        """None: every model of timm has other ones."""
        return []

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized images to [P3, P4, P5], each (B, channels[i], ceil(H / stride), ceil(W / stride))."""
        height, width = images.shape[2:]
        # Stems without padding round down: fill up to whole cells of P5, and cut off what that adds.
        images = functional.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        features = self.net(images)
        if self.is_channels_last:
            features = [x.permute(0, 3, 1, 2).contiguous() for x in features]
        sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
        return [x[:, :, :rows, :columns] for x, (rows, columns) in zip(features, sizes, strict=True)]


Backbone: TypeAlias = EfficientNet | ResNet | TimmBackbone


def build_backbone(spec: ModelSpec, drop_path: float = 0.0) -> Backbone:
    """Build the backbone that a spec names, with fresh weights.

    Args:
        spec: its `backbone`; for an EfficientNet also `padding` and `backbone_epsilon`.
        drop_path: stochastic depth, for an EfficientNet.

    Returns:
        A module from (B, 3, H, W) images to [P3, P4, P5], with the attribute `channels` of those, and the method
        `stages` that gives the modules of the stem and of each stage, or nothing where these are not known.

    Raises:
        UnknownNameError: there is no such backbone.
        SettingError: drop_path is set for a backbone without, or timm's model does not suit.
        MissingExtraError: timm is needed and not installed.
    """
    name = spec.backbone
    if name in SCALES:
        return EfficientNet(name, spec.padding, drop_path, spec.backbone_epsilon)
    if name not in RESNETS and not name.startswith(TIMM_PREFIX):
        raise unknown_name("backbone", name, BACKBONES)
    if drop_path:
        raise SettingError(f"drop_path is {drop_path}, which backbone {name} does not have; set it to 0")
    return ResNet(name) if name in RESNETS else TimmBackbone(name.removeprefix(TIMM_PREFIX))


def backbone_title(name: str) -> str:
    """A backbone's name as people write it: `EfficientNet-B0`, `EfficientNet-Lite0`, `ResNet-50`, `NAME (timm)`."""
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
            f"backbone '{TIMM_PREFIX}{name}' is one of timm's, which cannot be imported ({error}); "
            "run: pip install timm"
        ) from error


def _create(timm: Any, name: str, out_indices: tuple[int, ...] | None) -> Any:
    """A module whose feature_info has exactly these of its maps; with None, those that timm chooses."""
    chosen = {} if out_indices is None else {"out_indices": out_indices}
    try:
        return timm.create_model(name, features_only=True, pretrained=False, **chosen)
    # timm's own ways of saying that a model gives no features.
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        raise SettingError(f"backbone '{TIMM_PREFIX}{name}' gives no features: {error}") from error


def _indices(timm: Any, name: str) -> tuple[int, ...]:
    """Which of the model's maps have the strides of P3, P4 and P5; what comes behind P5 need not be built then."""
    with torch.device("meta"):
        info = _create(timm, name, None).feature_info
    strides, indices = info.reduction(), info.out_indices
    if not set(STRIDES) <= set(strides):
        raise SettingError(
            f"backbone '{TIMM_PREFIX}{name}' gives features of strides {sorted(set(strides))}; "
            f"needed are {', '.join(map(str, STRIDES))}"
        )
    return tuple(indices[strides.index(stride)] for stride in STRIDES)
