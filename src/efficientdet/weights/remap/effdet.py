"""The names of rwightman's effdet (efficientdet-pytorch), in every form in which it has saved them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.remap.layout import Dialect, Found, locate, unwrapped

_HEAD_NORM = re.compile(r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.(bn\.)?(\w+)")


_NAMES = {
    "extra": "fpn.resample.{index}.conv.{leaf}",
    "lateral": "fpn.cell.{cell}.fnode.{node}.combine.resample.{index}.conv.{leaf}",
    "fusion": "fpn.cell.{cell}.fnode.{node}.combine.edge_weights",
    "node": "fpn.cell.{cell}.fnode.{node}.after_combine.{leaf}",
    "tower": "{head}_net.conv_rep.{repeat}.{leaf}",
    "tower_norm": "{head}_net.bn_rep.{repeat}.{index}.bn.{leaf}",
    "predict": "{head}_net.predict.{leaf}",
}


def names(ours: str, model: EfficientDet) -> tuple[str, ...]:
    """The name that effdet gives to one of our tensors.

    Raises:
        WeightsError: effdet has no such tensor; names it.
    """
    if ours.startswith("backbone."):
        # timm's names, which our EfficientNet and ResNet have too; other backbones of timm are in `net`.
        return (ours.replace("backbone.net.", "backbone.", 1),)
    place = locate(ours, model)
    leaf = place.leaf.replace("depthwise", "conv_dw").replace("pointwise", "conv_pw")
    if place.part == "node" and not leaf.startswith("conv."):
        leaf = f"conv.{leaf}"
    return (_NAMES[place.part].format(**vars(place) | {"leaf": leaf}),)


def clean(state: Mapping[str, Tensor], model: EfficientDet) -> dict[str, Found]:
    """Remove wrappers' prefixes and stored anchors, and number the heads' batch norms by repeat, then by level."""
    plain = {bare: found for bare, found in unwrapped(state).items() if not bare.startswith("anchors.")}
    if not _is_level_first(plain, model):
        return {_HEAD_NORM.sub(r"\1_net.bn_rep.\2.\3.bn.\5", bare): found for bare, found in plain.items()}
    return {_HEAD_NORM.sub(r"\1_net.bn_rep.\3.\2.bn.\5", bare): found for bare, found in plain.items()}


def _is_level_first(plain: Mapping[str, Any], model: EfficientDet) -> bool:
    """Whether the heads' batch norms are numbered by level, then by repeat, as effdet does for TorchScript.

    The numbers tell. If a head has as many repeats as levels (D6, D7), the names tell: effdet puts each batch norm into
    a container called `bn` when it numbers them by repeat, and into none when by level.
    """
    found = [match for match in map(_HEAD_NORM.fullmatch, plain) if match]
    if not found:
        return False
    counts = (1 + max(int(match.group(2)) for match in found), 1 + max(int(match.group(3)) for match in found))
    by_repeat = (model.spec.head_depth, model.spec.levels[1] - model.spec.levels[0] + 1)
    if by_repeat[0] != by_repeat[1] and counts in (by_repeat, by_repeat[::-1]):
        return counts != by_repeat
    return all(match.group(4) is None for match in found)


EFFDET = Dialect(lambda name: "fpn." in name or "class_net." in name, names, clean)
