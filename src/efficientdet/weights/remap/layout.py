"""The place of a tensor in the network, in the paper's words, from which other implementations' names are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.efficientnet import EfficientNet

Part = Literal["stem", "block", "extra", "lateral", "fusion", "node", "tower", "tower_norm", "predict"]

# What Google's code calls the layers of stem and blocks. A block that does not expand lacks the first ones.
_STEM = {"conv_stem": "_conv_stem", "bn1": "_bn"}
_SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_EXPANDING = _SQUEEZE | {
    "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1", "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}  # fmt: skip
_FLAT = _SQUEEZE | {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}

# Put before every name by wrappers: benches, DataParallel, torch.compile.
_WRAPPERS = re.compile(r"^(?:module\.|model\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Place:
    """The place of one of our tensors. Fields that do not apply to its part keep their defaults.

    Attributes:
        part: `stem` and `block` of the backbone; `extra`, the lateral for the levels that the backbone lacks;
            `lateral`, `fusion` and `node` of the feature network; `tower`, `tower_norm` and `predict` of a head.
        leaf: the rest of the name, such as `conv_pw.weight` or `bn.running_mean`.
        block: number of the backbone's block, counted through all stages.
        google: what Google's code calls the layer of the backbone, such as `_expand_conv`.
        cell, node, node_name: the feature network's cell, and the node's number and name.
        level: pyramid level of the node, of the lateral's input, or of a head's batch norm.
        index: that level, counted from the finest.
        edge: number of the lateral's input among the node's inputs.
        head: `class` or `box`.
        repeat: number of the tower's convolution.
    """

    part: Part
    leaf: str
    block: int = 0
    google: str = ""
    cell: int = 0
    node: int = 0
    node_name: str = ""
    level: int = 0
    index: int = 0
    edge: int = 0
    head: str = ""
    repeat: int = 0


class Found(NamedTuple):
    """A tensor of another implementation, with its name in the file."""

    name: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return tuple(self.tensor.shape)


def _one(_: str, tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _first(_: str, tensors: list[Tensor]) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Dialect:
    """How another implementation names and lays out the tensors of this network.

    Attributes:
        is_theirs: whether a tensor's name in a file is one of theirs; asked in the order of `foreign.DIALECTS`.
        names: one of our names to theirs: one name, several if they store a vector's elements separately, or none.
        clean: a state of theirs with its names spelled as `names` does, and without what is not a weight.
        split: our name and tensor to their tensors, in the order of `names`.
        join: our name and their tensors to our tensor.
        unused: shapes, by name, of tensors that they store but do not use.
    """

    is_theirs: Callable[[str], bool]
    names: Callable[[str, EfficientDet], tuple[str, ...]]
    clean: Callable[[Mapping[str, Any], EfficientDet], dict[str, Found]]
    split: Callable[[str, Tensor], list[Tensor]] = _one
    join: Callable[[str, list[Tensor]], Tensor] = _first
    unused: Callable[[EfficientDet], dict[str, tuple[int, ...]]] = lambda model: {}


def locate(name: str, model: EfficientDet) -> Place:
    """Find the place of one of our tensors.

    Raises:
        WeightsError: no other implementation has such a part; names the tensor.
    """
    for locator in (_in_backbone, _in_feature_network, _in_head):
        place = locator(name, model)
        if place is not None:
            return place
    raise WeightsError(f"our tensor '{name}' has no counterpart in other implementations of EfficientDet")


def _in_backbone(name: str, model: EfficientDet) -> Place | None:
    if not isinstance(model.backbone, EfficientNet):
        return None
    stem = re.fullmatch(r"backbone\.((conv_stem|bn1)\..+)", name)
    if stem:
        return Place("stem", stem[1], google=_STEM[stem[2]])
    match = re.fullmatch(r"backbone\.blocks\.(\d+)\.(\d+)\.(.+)", name)
    if match is None:
        return None
    stage, index, leaf = int(match[1]), int(match[2]), match[3]
    stages: Any = model.backbone.blocks
    before = sum(len(stages[i]) for i in range(stage))
    layers = _EXPANDING if stages[stage][index].expands else _FLAT
    return Place("block", leaf, before + index, layers[leaf.rpartition(".")[0]])


def _in_feature_network(name: str, model: EfficientDet) -> Place | None:
    topology = model.feature_network.topology
    if name.startswith("feature_network.extra."):
        index = len(model.backbone.channels)
        return Place(
            "extra", name.removeprefix("feature_network.extra."), level=topology.levels[0] + index, index=index
        )
    match = re.fullmatch(r"feature_network\.cells\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        return None
    cell, node_name, leaf = int(match.group(1)), match.group(2), match.group(3)
    number = [node.name for node in topology.nodes].index(node_name)
    node = topology.nodes[number]
    part: Part = "fusion" if leaf == "fuse.weights" else "node"
    level, edge = node.level, 0
    lateral = re.fullmatch(r"laterals\.(in(\d+))\.(.+)", leaf)
    if lateral:
        part, leaf, level, edge = "lateral", lateral[3], int(lateral[2]), node.inputs.index(lateral[1])
    index = level - topology.levels[0]
    return Place(part, leaf, cell=cell, node=number, node_name=node_name, level=level, index=index, edge=edge)


def _in_head(name: str, model: EfficientDet) -> Place | None:
    match = re.fullmatch(r"(class|box)_head\.(?:convs\.(\d+)|bns\.(\d+)\.(\d+)|predict)\.(.+)", name)
    if match is None:
        return None
    head, conv, norm, level, leaf = match.groups()
    if conv is not None:
        return Place("tower", leaf, head=head, repeat=int(conv))
    if norm is not None:
        low, index = model.spec.levels[0], int(level)
        return Place("tower_norm", leaf, head=head, repeat=int(norm), level=low + index, index=index)
    return Place("predict", leaf, head=head)


def redundant_biases(model: EfficientDet) -> dict[str, list[str]]:
    """Biases of convolutions right before batch norms, whose running means could do the same.

    Args:
        model: any network, with or without these biases.

    Returns:
        Names of the running means of the batch norms after each bias, by the name that the bias has or would have.
    """
    biases = {}
    for name in model.state_dict():
        match = re.fullmatch(r"(feature_network\..+)\.(conv\.pointwise|conv)\.weight", name)
        if match:
            biases[f"{match.group(1)}.{match.group(2)}.bias"] = [f"{match.group(1)}.bn.running_mean"]
        match = re.fullmatch(r"((?:class|box)_head)\.convs\.(\d+)\.pointwise\.weight", name)
        if match:
            head, repeat = match.groups()
            levels = range(model.spec.levels[1] - model.spec.levels[0] + 1)
            means = [f"{head}.bns.{repeat}.{level}.running_mean" for level in levels]
            biases[f"{head}.convs.{repeat}.pointwise.bias"] = means
    return biases


def without_wrapper(name: str) -> str:
    """A tensor's name without the prefixes of benches, DataParallel and torch.compile."""
    return _WRAPPERS.sub("", name)


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Found]:
    """A state with wrappers' prefixes removed from its names, unless two tensors would then have the same name."""
    plain: dict[str, Found] = {}
    for name, tensor in state.items():
        bare = without_wrapper(name)
        plain[name if bare in plain else bare] = Found(name, tensor)
    return plain
