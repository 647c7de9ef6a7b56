"""The names of zylo117's Yet-Another-EfficientDet-Pytorch, D0 to D7x.

Its box head predicts (dy, dx, dh, dw), as the weights that it published do; versions of its first days, which predicted
(dx, dy, dw, dh) in tenths, carry the same names and cannot be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.remap.layout import Dialect, Found, Place, locate, unwrapped, without_wrapper

_HEADS = {"class": "classifier", "box": "regressor"}
# Within a block: ours to theirs; a block that does not expand lacks the first convolution and counts norms from 1.
_EXPANDING = {
    "conv_pw": "_expand_conv.conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv.conv", "bn2": "_bn1",
    "se.conv_reduce": "_se_reduce.conv", "se.conv_expand": "_se_expand.conv",
    "conv_pwl": "_project_conv.conv", "bn3": "_bn2",
}  # fmt: skip
_FLAT = {
    "conv_dw": "_depthwise_conv.conv", "bn1": "_bn1", "conv_pw": "_project_conv.conv", "bn2": "_bn2",
    "se.conv_reduce": "_se_reduce.conv", "se.conv_expand": "_se_expand.conv",
}  # fmt: skip
_STEM = {"conv_stem": "_conv_stem.conv", "bn1": "_bn0"}
# Its BiFPN holds fusion weights of these levels even where it does not use them: D6, D7 and D7x.
_FUSION_WEIGHTS = {f"p{level}_w1": (2,) for level in (3, 4, 5, 6)} | {
    "p4_w2": (3,), "p5_w2": (3,), "p6_w2": (3,), "p7_w2": (2,),
}  # fmt: skip


def names(ours: str, model: EfficientDet) -> tuple[str, ...]:
    """The name that zylo117 gives to one of our tensors.

    Raises:
        WeightsError: the network has a part that zylo117's cannot have; names it.
    """
    if model.spec.feature_network != "bifpn" or model.spec.levels[0] != 3:
        raise WeightsError(
            f"zylo117's weights are of BiFPN networks from level 3; {model.spec.name} has a "
            f"'{model.spec.feature_network}' from level {model.spec.levels[0]}"
        )
    place = locate(ours, model)
    if place.part == "stem":
        return (f"backbone_net.model.{_renamed(place.leaf, _STEM)}",)
    if place.part == "block":
        table = _EXPANDING if place.expands else _FLAT
        return (f"backbone_net.model._blocks.{place.block}.{_renamed(place.leaf, table)}",)
    if place.part == "extra":
        return (f"bifpn.0.p5_to_p6.{_lateral_leaf(place.leaf)}",)
    if place.part in ("lateral", "fusion", "node"):
        return (f"bifpn.{place.cell}.{_in_cell(place)}",)
    head = _HEADS[place.head]
    if place.part == "tower":
        return (f"{head}.conv_list.{place.repeat}.{_separable(place.leaf)}",)
    if place.part == "tower_norm":
        return (f"{head}.bn_list.{place.level - 3}.{place.repeat}.{place.leaf}",)
    return (f"{head}.header.{_separable(place.leaf)}",)


def _renamed(leaf: str, table: Mapping[str, str]) -> str:
    layer, _, rest = leaf.rpartition(".")
    return f"{table[layer]}.{rest}"


def _separable(leaf: str) -> str:
    return leaf.replace("depthwise.", "depthwise_conv.conv.").replace("pointwise.", "pointwise_conv.conv.")


def _lateral_leaf(leaf: str) -> str:
    """Their laterals are sequences: convolution 0, batch norm 1."""
    return f"0.{leaf}" if leaf.startswith("conv.") else leaf.replace("bn.", "1.")


def _in_cell(place: Place) -> str:
    goes_down = place.node_name.startswith("td")
    level = int(place.node_name.removeprefix("td").removeprefix("out"))
    if place.part == "lateral":
        second = "" if goes_down or level == 3 else "_2"
        return f"p{level}_down_channel{second}.{_lateral_leaf(place.leaf)}"
    # "up" and "down" are the other way round in their names: the top-down path is conv*_up.
    if place.part == "fusion":
        return f"p{level}_w{1 if goes_down or level == 3 else 2}"
    return f"conv{level}_{'up' if goes_down or level == 3 else 'down'}.{_separable(place.leaf.removeprefix('conv.'))}"


def clean(state: Mapping[str, Tensor], model: EfficientDet) -> dict[str, Found]:
    """Take off wrappers' prefixes."""
    return unwrapped(state)


def unused(model: EfficientDet) -> dict[str, tuple[int, ...]]:
    """Fusion weights that a network without weighted fusion (D6, D7, D7x) carries along."""
    if model.spec.fusion != "none":
        return {}
    cells = range(model.spec.depth)
    return {f"bifpn.{cell}.{name}": shape for cell in cells for name, shape in _FUSION_WEIGHTS.items()}


def is_zylo(name: str) -> bool:
    """Whether a tensor's name is one of theirs."""
    return re.match(r"(backbone_net|bifpn\.\d+|regressor|classifier)\.", without_wrapper(name)) is not None


ZYLO = Dialect(names, clean, unused=unused)
