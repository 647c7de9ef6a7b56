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
# Within a block: (ours, theirs by scope, theirs by attribute). Batch norms and 1x1 convolutions are numbered as they
# come, so a block that does not expand counts from its first one.
_EXPANDING = (
    ("conv_pw", "conv2d", "_expand_conv"), ("bn1", "tpu_batch_normalization", "_bn0"),
    ("conv_dw", "depthwise_conv2d", "_depthwise_conv"), ("bn2", "tpu_batch_normalization_1", "_bn1"),
    ("se.conv_reduce", "se/conv2d", "_se/_se_reduce"), ("se.conv_expand", "se/conv2d_1", "_se/_se_expand"),
    ("conv_pwl", "conv2d_1", "_project_conv"), ("bn3", "tpu_batch_normalization_2", "_bn2"),
)  # fmt: skip
_FLAT = (
    ("conv_dw", "depthwise_conv2d", "_depthwise_conv"), ("bn1", "tpu_batch_normalization", "_bn1"),
    ("se.conv_reduce", "se/conv2d", "_se/_se_reduce"), ("se.conv_expand", "se/conv2d_1", "_se/_se_expand"),
    ("conv_pw", "conv2d", "_project_conv"), ("bn2", "tpu_batch_normalization_1", "_bn2"),
)  # fmt: skip
_STEM = (("conv_stem", "conv2d", "_conv_stem"), ("bn1", "tpu_batch_normalization", "_bn"))

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
    """The names, by scope, of the variables that one of our tensors is made of; none for the batch norms' counters.

    Raises:
        WeightsError: the network has a part that Google's cannot have; names it.
    """
    if ours.endswith("num_batches_tracked"):
        return ()
    place = locate(ours, model)
    if place.part == "fusion":
        scope = f"fpn_cells/cell_{place.cell}/fnode{place.node}/WSM"
        edges = len(model.feature_network.topology.nodes[place.node].inputs)
        return (scope, *(f"{scope}_{edge}" for edge in range(1, edges)))
    return (_scope(place, model) + _variable(ours, place),)


def _scope(place: Place, model: EfficientDet) -> str:
    backbone = f"efficientnet-{model.spec.backbone}"
    low, high = model.spec.levels
    if place.part == "stem":
        return f"{backbone}/stem/{_lookup(_STEM, place.leaf)[0]}/"
    if place.part == "block":
        table = _EXPANDING if place.expands else _FLAT
        return f"{backbone}/blocks_{place.block}/{_lookup(table, place.leaf)[0]}/"
    if place.part == "extra":
        return f"resample_p{place.level}/{_lateral(place.leaf)}/"
    maps = high - low + 1 + place.node  # how many maps there are when the node is made: their layers' last number
    node = f"fpn_cells/cell_{place.cell}/fnode{place.node}"
    if place.part == "lateral":
        return f"{node}/resample_{place.edge}_{place.level - low}_{maps}/{_lateral(place.leaf)}/"
    if place.part == "node":
        return f"{node}/op_after_combine{maps}/{place.leaf.split('.')[0]}/"
    head = f"{place.head}_net/{place.head}-"
    if place.part == "predict":
        return f"{head}predict/"
    return f"{head}{place.repeat}/" if place.part == "tower" else f"{head}{place.repeat}-bn-{place.level}/"


def _lookup(table: tuple[tuple[str, str, str], ...], leaf: str) -> tuple[str, str]:
    layer = leaf.rpartition(".")[0]
    return next((scope, attribute) for ours, scope, attribute in table if ours == layer)


def _lateral(leaf: str) -> str:
    return "conv2d" if leaf.startswith("conv.") else "bn"


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
    """Name by the path of attributes to name by scope, of every variable, redundant biases included."""
    scopes: dict[str, str] = {}
    for ours in (*model.state_dict(), *redundant_biases(model)):
        by_scope = names(ours, model)
        if not by_scope:
            continue
        place = locate(ours, model)
        if place.part == "fusion":
            node = f"fpn_cells/cells/{place.cell}/fnodes/{place.node}"
            scopes |= {f"{node}/{scope.rpartition('/')[2]}": scope for scope in by_scope}
        else:
            scopes[_attributes(place, model) + _variable(ours, place)] = by_scope[0]
    return scopes


def _attributes(place: Place, model: EfficientDet) -> str:
    low = model.spec.levels[0]
    if place.part == "stem":
        return f"backbone/_stem/{_lookup(_STEM, place.leaf)[1]}/"
    if place.part == "block":
        table = _EXPANDING if place.expands else _FLAT
        return f"backbone/_blocks/{place.block}/{_lookup(table, place.leaf)[1]}/"
    if place.part == "extra":
        return f"resample_layers/0/{_lateral(place.leaf)}/"
    node = f"fpn_cells/cells/{place.cell}/fnodes/{place.node}"
    if place.part == "lateral":
        return f"{node}/resample_layers/{place.edge}/{_lateral(place.leaf)}/"
    if place.part == "node":
        return f"{node}/op_after_combine/{'conv_op' if place.leaf.startswith('conv.') else 'bn'}/"
    head = f"{place.head}_net"
    if place.part == "predict":
        return f"{head}/{'classes' if place.head == 'class' else 'boxes'}/"
    if place.part == "tower":
        return f"{head}/conv_ops/{place.repeat}/"
    return f"{head}/bns/{place.repeat}/{place.level - low}/"


def is_tensorflow(name: str) -> bool:
    """Whether a variable's name is one of theirs."""
    return "/" in name


TENSORFLOW = Dialect(names, clean, split, join)
