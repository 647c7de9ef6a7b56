"""The names of rwightman's effdet (efficientdet-pytorch), in all the forms in which it has written them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.remap.layout import Dialect, Found, locate, unwrapped

_HEAD_NORM = re.compile(r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.(bn\.)?(\w+)")


def _conv_leaf(leaf: str) -> str:
    return leaf.replace("depthwise", "conv_dw").replace("pointwise", "conv_pw")


def names(ours: str, model: EfficientDet) -> tuple[str, ...]:
    """The name that effdet gives to one of our tensors.

    Raises:
        WeightsError: effdet has no such tensor; names it.
    """
    if ours.startswith("backbone."):
        # timm's backbones: an EfficientNet and a ResNet of ours have its names, and the adapter holds it as `net`.
        return (ours.replace("backbone.net.", "backbone.", 1),)
    place = locate(ours, model)
    levels = model.spec.levels
    if place.part == "extra":
        return (f"fpn.resample.{place.level - levels[0]}.conv.{place.leaf}",)
    if place.part == "tower":
        return (f"{place.head}_net.conv_rep.{place.repeat}.{_conv_leaf(place.leaf)}",)
    if place.part == "tower_norm":
        return (f"{place.head}_net.bn_rep.{place.repeat}.{place.level - levels[0]}.bn.{place.leaf}",)
    if place.part == "predict":
        return (f"{place.head}_net.predict.{_conv_leaf(place.leaf)}",)
    node = f"fpn.cell.{place.cell}.fnode.{place.node}"
    if place.part == "lateral":
        return (f"{node}.combine.resample.{place.level - levels[0]}.conv.{place.leaf}",)
    if place.part == "fusion":
        return (f"{node}.combine.edge_weights",)
    leaf = place.leaf if place.leaf.startswith("conv.") else f"conv.{place.leaf}"
    return (f"{node}.after_combine.{_conv_leaf(leaf)}",)


def clean(state: Mapping[str, Tensor], model: EfficientDet) -> dict[str, Found]:
    """Take off wrappers' prefixes and the stored anchors; put the heads' batch norms in the order repeat, level."""
    plain = {bare: found for bare, found in unwrapped(state).items() if not bare.startswith("anchors.")}
    if not _is_level_first(plain, model):
        return {_HEAD_NORM.sub(r"\1_net.bn_rep.\2.\3.bn.\5", bare): found for bare, found in plain.items()}
    return {_HEAD_NORM.sub(r"\1_net.bn_rep.\3.\2.bn.\5", bare): found for bare, found in plain.items()}


def _is_level_first(plain: Mapping[str, Any], model: EfficientDet) -> bool:
    """Whether the head's batch norms are listed by level, then by repeat, as effdet does for TorchScript.

    The counts tell. Where a head has as many repeats as levels (D6, D7) the container does: effdet wraps each batch
    norm in one called `bn` when it lists them by repeat, and in none when by level.
    """
    found = [match for match in map(_HEAD_NORM.fullmatch, plain) if match]
    if not found:
        return False
    counts = (1 + max(int(match.group(2)) for match in found), 1 + max(int(match.group(3)) for match in found))
    by_repeat = (model.spec.head_depth, model.spec.levels[1] - model.spec.levels[0] + 1)
    if by_repeat[0] != by_repeat[1] and counts in (by_repeat, by_repeat[::-1]):
        return counts != by_repeat
    return all(match.group(4) is None for match in found)


EFFDET = Dialect(names, clean)
