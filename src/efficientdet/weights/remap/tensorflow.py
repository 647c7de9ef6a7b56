"""The names and the layout of Google's EfficientDet (google/automl), from graph checkpoints, h5 files, and TF2 objects.

Graph checkpoints and h5 files name variables by scope (`fpn_cells/cell_0/fnode1/WSM_1`); checkpoints of TensorFlow 2
name them by the path of attributes (`fpn_cells/cells/0/fnodes/1/WSM_1/.ATTRIBUTES/VARIABLE_VALUE`). Where a file has
exponential moving averages beside the raw weights, the averages are taken: they are what was evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.remap.layout import Dialect, Found, Place, locate, redundant_biases

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
# The layers of a block, ours: (theirs by scope, theirs by attribute). Batch norms and 1x1 convolutions are numbered in
# order, so a block that does not expand counts from its first one.
_EXPANDING = {
    "conv_pw": ("conv2d", "_expand_conv"), "bn1": ("tpu_batch_normalization", "_bn0"),
    "conv_dw": ("depthwise_conv2d", "_depthwise_conv"), "bn2": ("tpu_batch_normalization_1", "_bn1"),
    "se.conv_reduce": ("se/conv2d", "_se/_se_reduce"), "se.conv_expand": ("se/conv2d_1", "_se/_se_expand"),
    "conv_pwl": ("conv2d_1", "_project_conv"), "bn3": ("tpu_batch_normalization_2", "_bn2"),
}  # fmt: skip
_FLAT = {
    "conv_dw": ("depthwise_conv2d", "_depthwise_conv"), "bn1": ("tpu_batch_normalization", "_bn1"),
    "se.conv_reduce": ("se/conv2d", "_se/_se_reduce"), "se.conv_expand": ("se/conv2d_1", "_se/_se_expand"),
    "conv_pw": ("conv2d", "_project_conv"), "bn2": ("tpu_batch_normalization_1", "_bn2"),
}  # fmt: skip
_STEM = {"conv_stem": ("conv2d", "_conv_stem"), "bn1": ("tpu_batch_normalization", "_bn")}

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_AVERAGE = "/ExponentialMovingAverage"
# Where Keras' optimizer keeps the averages.
_AVERAGE_SLOT = re.compile(r"/\.OPTIMIZER_SLOT/.+/average$")
# h5 files put a layer's name before its variables' names, which begin with it already.
_OUTER_SCOPE = re.compile(r"^.*/(?=(?:efficientnet-\w+|resample_p\d+|fpn_cells|class_net|box_net)/)")
# Keras numbers layers without a name of their own, and TPUs, GPUs and CPUs have batch norms of different classes.
_NORM_CLASS = re.compile(r"/(?:\w+_)?batch_normalization(?=[/_])")
_STEM_LAYER = re.compile(r"/stem(?:_\d+)?/(conv2d|tpu_batch_normalization)(?:_\d+)?/")
# State of the trainer, and the classifier that the backbone once had: no weights of the detector.
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
    layer, cell, node, head, repeat = place.leaf.rpartition(".")[0], place.cell, place.node, place.head, place.repeat
    is_conv = place.leaf.startswith("conv.")
    by_scope, by_attribute = f"fpn_cells/cell_{cell}/fnode{node}", f"fpn_cells/cells/{cell}/fnodes/{node}"
    maps = high - low + 1 + node  # maps that exist when the node is made: the last number in its layers' names
    resample = "conv2d" if is_conv else "bn"
    if place.part in ("stem", "block"):
        table = _STEM if place.part == "stem" else _EXPANDING if place.expands else _FLAT
        scope, attribute = table[layer]
        block = ("stem", "_stem") if place.part == "stem" else (f"blocks_{place.block}", f"_blocks/{place.block}")
        return f"efficientnet-{model.spec.backbone}/{block[0]}/{scope}", f"backbone/{block[1]}/{attribute}"
    if place.part == "extra":
        return f"resample_p{place.level}/{resample}", f"resample_layers/0/{resample}"
    if place.part == "fusion":
        return by_scope, by_attribute
    if place.part == "lateral":
        edge, level = place.edge, place.level - low
        return (
            f"{by_scope}/resample_{edge}_{level}_{maps}/{resample}",
            f"{by_attribute}/resample_layers/{edge}/{resample}",
        )
    if place.part == "node":
        return (
            f"{by_scope}/op_after_combine{maps}/{'conv' if is_conv else 'bn'}",
            f"{by_attribute}/op_after_combine/{'conv_op' if is_conv else 'bn'}",
        )
    if place.part == "predict":
        return f"{head}_net/{head}-predict", f"{head}_net/{'classes' if head == 'class' else 'boxes'}"
    if place.part == "tower":
        return f"{head}_net/{head}-{repeat}", f"{head}_net/conv_ops/{repeat}"
    return f"{head}_net/{head}-{repeat}-bn-{place.level}", f"{head}_net/bns/{repeat}/{place.level - low}"


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
    """Our tensor in their layout: kernels HWIO, depthwise ones HWC1, fusion weights one scalar each."""
    if ours.endswith("fuse.weights"):
        return list(tensor.unbind())
    if tensor.ndim != 4:
        return [tensor]
    return [tensor.permute(2, 3, 0, 1) if _is_depthwise(ours) else tensor.permute(2, 3, 1, 0)]


def join(ours: str, tensors: list[Tensor]) -> Tensor:
    """Their variables as our tensor: OIHW, depthwise C1HW, fusion weights in one vector."""
    if ours.endswith("fuse.weights"):
        return torch.stack(tensors)
    tensor = tensors[0]
    if tensor.ndim != 4:
        return tensor
    return tensor.permute(2, 3, 0, 1) if _is_depthwise(ours) else tensor.permute(3, 2, 0, 1)


# ---- what files hold
def clean(state: Mapping[str, Tensor], model: EfficientDet) -> dict[str, Found]:
    """Bring a file's names to those of `names`, averages in place of raw weights, without the trainer's state."""
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
    """The one spelling of a name that `names` uses."""
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


def is_tensorflow(name: str) -> bool:
    """Whether a variable's name is one of theirs."""
    return "/" in name


TENSORFLOW = Dialect(names, clean, split, join)
