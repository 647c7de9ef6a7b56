"""Where a tensor sits in the network, in the paper's words: what the names of other implementations are made from."""

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

# Wrappers put these before every name: benches, DataParallel, torch.compile.
_WRAPPERS = re.compile(r"^(?:module\.|model\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Place:
    """The place of one of our tensors; fields that do not apply to its part are left at their defaults.

    Attributes:
        part: `stem` and `block` of the backbone; `extra`, the lateral of the levels that the backbone lacks; `lateral`,
            `fusion` and `node` of the feature network; `tower`, `tower_norm` and `predict` of a head.
        leaf: the rest of the name within its part, such as `conv_pw.weight` or `bn.running_mean`.
        block: of a block: its number counted through all stages.
        expands: of a block: whether it begins with an expanding convolution.
        cell, node, node_name: of the feature network: the cell, and the node by number and by name.
        level: pyramid level of the node, of the lateral's input, or of a head's batch norm.
        edge: of a lateral: its number among the node's inputs.
        head: `class` or `box`.
        repeat: of a tower: which of its convolutions.
    """

    part: Part
    leaf: str
    block: int = 0
    expands: bool = True
    cell: int = 0
    node: int = 0
    node_name: str = ""
    level: int = 0
    edge: int = 0
    head: str = ""
    repeat: int = 0


class Found(NamedTuple):
    """A tensor of a foreign state, with the name under which the file has it."""

    name: str
    tensor: Tensor


def _one(_: str, tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _first(_: str, tensors: list[Tensor]) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Dialect:
    """How another implementation names and lays out the tensors of this network.

    Attributes:
        names: one of our names to theirs: one, several where they keep a vector's elements apart, or none.
        clean: their state to the names that `names` gives, without what is no weight of the network.
        split: (our name, tensor) to their tensors, in the order of `names`.
        join: the other way round.
        unused: name (as `names` would give it) to shape of tensors that they keep but whose value changes nothing.
    """

    names: Callable[[str, EfficientDet], tuple[str, ...]]
    clean: Callable[[Mapping[str, Any], EfficientDet], dict[str, Found]]
    split: Callable[[str, Tensor], list[Tensor]] = _one
    join: Callable[[str, list[Tensor]], Tensor] = _first
    unused: Callable[[EfficientDet], dict[str, tuple[int, ...]]] = lambda model: {}


def locate(name: str, model: EfficientDet) -> Place:
    """Find the place of one of our tensors.

    Raises:
        WeightsError: the tensor belongs to a part that no other implementation has; names it.
    """
    for locator in (_in_backbone, _in_feature_network, _in_head):
        place = locator(name, model)
        if place is not None:
            return place
    raise WeightsError(f"our tensor '{name}' has no counterpart in other implementations of EfficientDet")


def _in_backbone(name: str, model: EfficientDet) -> Place | None:
    if not isinstance(model.backbone, EfficientNet):
        return None
    stem = re.fullmatch(r"backbone\.((?:conv_stem|bn1)\..+)", name)
    if stem:
        return Place("stem", stem.group(1))
    match = re.fullmatch(r"backbone\.blocks\.(\d+)\.(\d+)\.(.+)", name)
    if match is None:
        return None
    stage, index = int(match.group(1)), int(match.group(2))
    stages: Any = model.backbone.blocks
    before = sum(len(stages[i]) for i in range(stage))
    return Place("block", match.group(3), before + index, stages[stage][index].expands)


def _in_feature_network(name: str, model: EfficientDet) -> Place | None:
    topology = model.feature_network.topology
    if name.startswith("feature_network.extra."):
        first_extra = topology.levels[0] + len(model.backbone.channels)
        return Place("extra", name.removeprefix("feature_network.extra."), level=first_extra)
    match = re.fullmatch(r"feature_network\.cells\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        return None
    cell, node_name, leaf = int(match.group(1)), match.group(2), match.group(3)
    index = [node.name for node in topology.nodes].index(node_name)
    node = topology.nodes[index]
    lateral = re.fullmatch(r"laterals\.(in(\d+))\.(.+)", leaf)
    if lateral:
        edge, level = node.inputs.index(lateral.group(1)), int(lateral.group(2))
        return Place("lateral", lateral.group(3), cell=cell, node=index, node_name=node_name, level=level, edge=edge)
    part: Part = "fusion" if leaf == "fuse.weights" else "node"
    return Place(part, leaf, cell=cell, node=index, node_name=node_name, level=node.level)


def _in_head(name: str, model: EfficientDet) -> Place | None:
    match = re.fullmatch(r"(class|box)_head\.(?:convs\.(\d+)|bns\.(\d+)\.(\d+)|predict)\.(.+)", name)
    if match is None:
        return None
    head, conv, norm, level, leaf = match.groups()
    if conv is not None:
        return Place("tower", leaf, head=head, repeat=int(conv))
    if norm is not None:
        low = model.spec.levels[0]
        return Place("tower_norm", leaf, head=head, repeat=int(norm), level=low + int(level))
    return Place("predict", leaf, head=head)


def redundant_biases(model: EfficientDet) -> dict[str, list[str]]:
    """Biases that stand right before batch norms, and change nothing that a running mean could not.

    Args:
        model: any network; whether it has these biases does not matter.

    Returns:
        Name that the bias has (or would have) to the names of the running means of the batch norms behind it.
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
    """A state by its names without wrappers' prefixes; the second of two that then share a name keeps its own."""
    plain: dict[str, Found] = {}
    for name, tensor in state.items():
        bare = without_wrapper(name)
        plain[name if bare in plain else bare] = Found(name, tensor)
    return plain
