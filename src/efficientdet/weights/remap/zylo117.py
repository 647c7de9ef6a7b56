"""The names of zylo117's Yet-Another-EfficientDet-Pytorch, D0 to D7x.

Its box head predicts (dy, dx, dh, dw), and so do its published weights. Its earliest versions predicted
(dx, dy, dw, dh) in tenths under the same names, and cannot be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.remap.layout import Dialect, Found, locate, unwrapped, without_wrapper

_NAMES = {
    "stem": "backbone_net.model.{backbone}",
    "block": "backbone_net.model._blocks.{block}.{backbone}",
    "extra": "bifpn.0.p5_to_p6.{lateral}",
    "lateral": "bifpn.{cell}.p{level}_down_channel{second}.{lateral}",
    "fusion": "bifpn.{cell}.p{level}_w{number}",
    "node": "bifpn.{cell}.conv{level}_{way}.{leaf}",
    "tower": "{head}.conv_list.{repeat}.{leaf}",
    "tower_norm": "{head}.bn_list.{index}.{repeat}.{leaf}",
    "predict": "{head}.header.{leaf}",
}
_HEADS = {"class": "classifier", "box": "regressor"}
# Fusion weights of its BiFPN, which D6, D7 and D7x have too, without using them.
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
            f"zylo117 has BiFPN networks from level 3 only; {model.spec.name} has a "
            f"'{model.spec.feature_network}' from level {model.spec.levels[0]}"
        )
    place = locate(ours, model)
    layer, _, tensor = place.leaf.rpartition(".")
    leaf = place.leaf.removeprefix("conv.").replace("depthwise.", "depthwise_conv.conv.")
    # The top-down path and level 3 come first; "up" and "down" are the other way round in their names.
    is_first = place.node_name.startswith("td") or place.level == 3
    words = {
        "backbone": f"{_google_layer(place.google)}.{tensor}",
        "leaf": leaf.replace("pointwise.", "pointwise_conv.conv."),
        # Their laterals are sequences: convolution 0, batch norm 1.
        "lateral": f"0.{place.leaf}" if layer == "conv" else f"1.{tensor}",
        "second": "" if is_first else "_2",
        "way": "up" if is_first else "down",
        "number": 1 if is_first else 2,
        "head": _HEADS.get(place.head),
    }
    return (_NAMES[place.part].format(**vars(place) | words),)


def _google_layer(name: str) -> str:
    """zylo117's name of a layer of the backbone: convolutions are inside modules of their own, which pad."""
    if name.startswith("_bn"):
        return "_bn0" if name == "_bn" else name
    return f"{name}.conv"


def clean(state: Mapping[str, Tensor], model: EfficientDet) -> dict[str, Found]:
    """Remove wrappers' prefixes."""
    return unwrapped(state)


def unused(model: EfficientDet) -> dict[str, tuple[int, ...]]:
    """Fusion weights of networks without weighted fusion (D6, D7, D7x)."""
    if model.spec.fusion != "none":
        return {}
    cells = range(model.spec.depth)
    return {f"bifpn.{cell}.{name}": shape for cell in cells for name, shape in _FUSION_WEIGHTS.items()}


def _is_theirs(name: str) -> bool:
    return re.match(r"(backbone_net|bifpn\.\d+|regressor|classifier)\.", without_wrapper(name)) is not None


ZYLO = Dialect(_is_theirs, names, clean, unused=unused)
