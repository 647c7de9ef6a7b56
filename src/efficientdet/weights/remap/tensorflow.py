"""The names and the layout of Google's EfficientDet (google/automl).

Graph checkpoints and h5 files name variables by scope (`fpn_cells/cell_0/fnode1/WSM_1`), checkpoints of TensorFlow 2 by
the path of attributes (`fpn_cells/cells/0/fnodes/1/WSM_1/.ATTRIBUTES/VARIABLE_VALUE`). If a file has exponential moving
averages beside the raw weights, the averages are used: they are what was evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.remap.layout import Dialect, Found, Place, locate, redundant_biases

# The layer of each part, by scope and by the path of attributes.
_LAYERS = {
    "stem": ("efficientnet-{backbone}/stem/{scope}", "backbone/_stem/{google}"),
    "block": ("efficientnet-{backbone}/blocks_{block}/{scope}", "backbone/_blocks/{block}/{google}"),
    "extra": ("resample_p{level}/{conv2d}", "resample_layers/0/{conv2d}"),
    "lateral": (
        "fpn_cells/cell_{cell}/fnode{node}/resample_{edge}_{index}_{maps}/{conv2d}",
        "fpn_cells/cells/{cell}/fnodes/{node}/resample_layers/{edge}/{conv2d}",
    ),
    "fusion": ("fpn_cells/cell_{cell}/fnode{node}", "fpn_cells/cells/{cell}/fnodes/{node}"),
    "node": (
        "fpn_cells/cell_{cell}/fnode{node}/op_after_combine{maps}/{conv}",
        "fpn_cells/cells/{cell}/fnodes/{node}/op_after_combine/{conv_op}",
    ),
    "tower": ("{head}_net/{head}-{repeat}", "{head}_net/conv_ops/{repeat}"),
    "tower_norm": ("{head}_net/{head}-{repeat}-bn-{level}", "{head}_net/bns/{repeat}/{index}"),
    "predict": ("{head}_net/{head}-predict", "{head}_net/{outputs}"),
}
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
# The layers of stem and blocks by scope. Batch norms and 1x1 convolutions are numbered in the order in which they run.
_SCOPES = {
    "conv_stem": "conv2d", "conv_pw": "conv2d", "conv_dw": "depthwise_conv2d", "conv_pwl": "conv2d_1",
    "se.conv_reduce": "se/conv2d", "se.conv_expand": "se/conv2d_1", "bn1": "tpu_batch_normalization",
    "bn2": "tpu_batch_normalization_1", "bn3": "tpu_batch_normalization_2",
}  # fmt: skip

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_AVERAGE = "/ExponentialMovingAverage"
# Where Keras' optimizer stores the averages.
_AVERAGE_SLOT = re.compile(r"/\.OPTIMIZER_SLOT/.+/average$")
# h5 files put a layer's name before its variables' names, which begin with it already.
_OUTER_SCOPE = re.compile(r"^.*/(?=(?:efficientnet-\w+|resample_p\d+|fpn_cells|class_net|box_net)/)")
# Keras numbers layers that have no name, and TPUs, GPUs and CPUs have batch norms of different classes.
_NORM_CLASS = re.compile(r"/(?:\w+_)?batch_normalization(?=[/_])")
_STEM_LAYER = re.compile(r"/stem(?:_\d+)?/(conv2d|tpu_batch_normalization)(?:_\d+)?/")
# State of the training, and the classifier that the backbone once had.
_NOT_WEIGHTS = re.compile(
    r"global_step$|save_counter$|_CHECKPOINTABLE_OBJECT_GRAPH$|optimizer/|.*/\.OPTIMIZER_SLOT/|.*learning_rate$"
    r"|.*/(?:Momentum|Adam|Adam_1|RMSProp|RMSProp_1)$|beta[12]_power$|(?:.*/)?efficientnet-\w+/head/|backbone/_head/"
)


def names(ours: str, model: EfficientDet) -> tuple[str, ...]:
    """The variables, by scope, that one of our tensors is made of; none for the counters of batch norms.

    Raises:
        WeightsError: the network has a part that Google's cannot have; names it.
    """
    return _variables(ours, model)[0]


def _variables(ours: str, model: EfficientDet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the variables that a tensor is made of: by scope, and by the path of attributes."""
    if ours.endswith("num_batches_tracked"):
        return (), ()
    place = locate(ours, model)
    by_scope, by_attribute = _layer(place, model)
    if place.part == "fusion":
        edges = len(model.feature_network.topology.nodes[place.node].inputs)
        leaves = ["WSM", *(f"WSM_{edge}" for edge in range(1, edges))]
    else:
        leaves = [_variable(ours, place)]
    return tuple(f"{by_scope}/{leaf}" for leaf in leaves), tuple(f"{by_attribute}/{leaf}" for leaf in leaves)


def _layer(place: Place, model: EfficientDet) -> tuple[str, str]:
    """Name of a place's layer: by scope, and by the path of attributes."""
    low, high = model.spec.levels
    layer = place.leaf.rpartition(".")[0]
    words = vars(place) | {
        "backbone": model.spec.backbone,
        "scope": _SCOPES.get(layer),
        "google": f"_se/{place.google}" if place.google.startswith("_se") else place.google,
        "maps": high - low + 1 + place.node,  # maps that exist when the node is made
        "conv": layer.partition(".")[0],  # conv or bn
        "conv2d": layer.replace("conv", "conv2d"),
        "conv_op": layer.partition(".")[0].replace("conv", "conv_op"),
        "outputs": {"class": "classes", "box": "boxes"}.get(place.head),
    }
    by_scope, by_attribute = _LAYERS[place.part]
    return by_scope.format(**words), by_attribute.format(**words)


def _is_norm(ours: str, place: Place) -> bool:
    return place.part == "tower_norm" or re.search(r"(^|\.)bn\d?\.\w+$", ours) is not None


def _variable(ours: str, place: Place) -> str:
    leaf = ours.rpartition(".")[2]
    if _is_norm(ours, place):
        return _NORM[leaf]
    if leaf == "bias":
        return "bias"
    if _is_depthwise(ours):
        return "depthwise_kernel"
    return "pointwise_kernel" if ours.endswith("pointwise.weight") else "kernel"


def _is_depthwise(ours: str) -> bool:
    return ours.endswith(("conv_dw.weight", "depthwise.weight"))


# ---- layout
def split(ours: str, tensor: Tensor) -> list[Tensor]:
    """Our tensor in their layout: kernels HWIO, depthwise kernels HWC1, fusion weights as scalars."""
    if ours.endswith("fuse.weights"):
        return list(tensor.unbind())
    if tensor.ndim != 4:
        return [tensor]
    return [tensor.permute(2, 3, 0, 1) if _is_depthwise(ours) else tensor.permute(2, 3, 1, 0)]


def join(ours: str, tensors: list[Tensor]) -> Tensor:
    """Their variables as our tensor: kernels OIHW, depthwise kernels C1HW, fusion weights as one vector."""
    if ours.endswith("fuse.weights"):
        return torch.stack(tensors)
    tensor = tensors[0]
    if tensor.ndim != 4:
        return tensor
    return tensor.permute(2, 3, 0, 1) if _is_depthwise(ours) else tensor.permute(3, 2, 0, 1)


# ---- what files hold
def clean(state: Mapping[str, Tensor], model: EfficientDet) -> dict[str, Found]:
    """Spell a file's names as `names` does, replace raw weights by averages, and leave the training's state out."""
    scopes = _scopes_by_attribute(model) if any(name.endswith(_VALUE) for name in state) else {}
    raw: dict[str, Found] = {}
    averaged: dict[str, Found] = {}
    for name, tensor in state.items():
        bare = name.removesuffix(":0").removesuffix(_VALUE)
        if bare.endswith(_AVERAGE):
            averaged[_scope_name(bare.removesuffix(_AVERAGE), scopes)] = Found(name, tensor)
        elif _AVERAGE_SLOT.search(bare):
            averaged[_scope_name(_AVERAGE_SLOT.sub("", bare), scopes)] = Found(name, tensor)
        elif not _NOT_WEIGHTS.match(bare):
            raw[_scope_name(bare, scopes)] = Found(name, tensor)
    return raw | averaged


def _scope_name(name: str, scopes: Mapping[str, str]) -> str:
    """A name as `names` spells it."""
    if scopes:
        name = re.sub(r"^model/", "", name)
        name = re.sub(r"/vars/(\d+)$", lambda edge: f"/WSM_{edge.group(1)}", name).replace("/WSM_0", "/WSM")
        return scopes.get(name, name)
    name = _NORM_CLASS.sub("/tpu_batch_normalization", _OUTER_SCOPE.sub("", name))
    return _STEM_LAYER.sub(r"/stem/\1/", name)


def _scopes_by_attribute(model: EfficientDet) -> dict[str, str]:
    """Name by scope of every variable, redundant biases included, by its path of attributes."""
    scopes: dict[str, str] = {}
    for ours in (*model.state_dict(), *redundant_biases(model)):
        by_scope, by_attribute = _variables(ours, model)
        scopes |= zip(by_attribute, by_scope, strict=True)
    return scopes


TENSORFLOW = Dialect(lambda name: "/" in name, names, clean, split, join)
