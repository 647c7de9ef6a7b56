"""Weights of other implementations, name for name (effdet here). TensorFlow's (y, x) order is turned round here only."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from efficientdet.errors import WeightsError, unknown_name
from efficientdet.network.efficientdet import EfficientDet

SOURCES = ("effdet",)
# Others predict (dy, dx, dh, dw); swapping both pairs turns one order into the other, either way.
_SWAP_XY = (1, 0, 3, 2)


def _effdet_name(ours: str, model: EfficientDet) -> str:
    """The name that effdet gives to one of our tensors."""
    if ours.startswith("backbone."):
        return ours
    if ours.startswith("feature_network.extra."):
        first_extra = len(model.backbone.channels)
        return ours.replace("feature_network.extra.", f"fpn.resample.{first_extra}.conv.")
    head = re.match(r"(class|box)_head\.(convs|bns|predict)\.(.*)", ours)
    if head:
        kind, part, rest = head.groups()
        if part == "bns":
            repeat, level, leaf = rest.split(".")
            return f"{kind}_net.bn_rep.{repeat}.{level}.bn.{leaf}"
        rest = rest.replace("depthwise", "conv_dw").replace("pointwise", "conv_pw")
        return f"{kind}_net.{'conv_rep' if part == 'convs' else part}.{rest}"
    match = re.match(r"feature_network\.cells\.(\d+)\.(\w+)\.(.*)", ours)
    if match is None:
        raise WeightsError(f"our tensor '{ours}' has no effdet name")
    cell, node_name, rest = match.groups()
    topology = model.feature_network.topology
    index = [node.name for node in topology.nodes].index(node_name)
    prefix = f"fpn.cell.{cell}.fnode.{index}."
    lateral = re.match(r"laterals\.in(\d+)\.(.*)", rest)
    if lateral:
        offset = int(lateral.group(1)) - topology.levels[0]
        return f"{prefix}combine.resample.{offset}.conv.{lateral.group(2)}"
    if rest == "fuse.weights":
        return f"{prefix}combine.edge_weights"
    rest = rest.replace("conv.depthwise", "conv.conv_dw").replace("conv.pointwise", "conv.conv_pw")
    return f"{prefix}after_combine.{rest if rest.startswith('conv.') else 'conv.' + rest}"


def _swap_box_order(name: str, tensor: Tensor) -> Tensor:
    """Permute the output channels of the box head's last convolution; leave every other tensor alone."""
    if not name.startswith("box_head.predict.pointwise."):
        return tensor
    per_anchor = tensor.reshape(-1, 4, *tensor.shape[1:])
    return per_anchor[:, list(_SWAP_XY)].reshape(tensor.shape)


def _clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop wrapper prefixes, the stored anchors, and counters; put level-first batch norms repeat-first."""
    cleaned = {}
    for name, tensor in state.items():
        name = re.sub(r"^(module\.|model\.)+", "", name)
        if name.startswith("anchors."):
            continue
        cleaned[name] = tensor
    return cleaned


def load_foreign(model: EfficientDet, state: Mapping[str, Tensor], source: str = "effdet") -> None:
    """Load another implementation's weights into a model, strictly.

    Args:
        model: a network whose spec is that of the weights; changed in place.
        state: name to tensor.
        source: `effdet`.

    Raises:
        UnknownNameError: the source is not known.
        WeightsError: a tensor is missing, unexpected, or has another shape; lists every one, and changes nothing.
    """
    if source not in SOURCES:
        raise unknown_name("source of weights", source, SOURCES)
    theirs = _clean(state)
    ours, problems = {}, []
    for name, tensor in model.state_dict().items():
        their_name = _effdet_name(name, model)
        found = theirs.pop(their_name, None)
        if found is None:
            if not name.endswith("num_batches_tracked"):
                problems.append(f"missing: {their_name} {tuple(tensor.shape)}")
        elif found.shape != tensor.shape:
            problems.append(f"shape: {their_name} is {tuple(found.shape)}, the model has {tuple(tensor.shape)}")
        else:
            ours[name] = _swap_box_order(name, found)
    problems += [f"unexpected: {name}" for name in theirs]
    if problems:
        raise WeightsError(
            f"{len(problems)} tensors do not fit {model.spec.name} with {model.num_classes} classes:\n  "
            + "\n  ".join(problems)
        )
    model.load_state_dict(ours, strict=False)


def to_foreign(model: EfficientDet, target: str = "effdet") -> dict[str, Tensor]:
    """A model's weights under another implementation's names; `load_foreign` reads them back bit for bit.

    Raises:
        UnknownNameError: the target is not known.
    """
    if target not in SOURCES:
        raise unknown_name("target of weights", target, SOURCES)
    with torch.no_grad():
        return {
            _effdet_name(name, model): _swap_box_order(name, tensor).clone()
            for name, tensor in model.state_dict().items()
        }
