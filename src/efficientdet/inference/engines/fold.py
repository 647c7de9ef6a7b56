"""A trained network rewritten for inference: the same function in fewer operations.

Batch norms become part of the convolution before them, along with the bias that they make redundant; fusion weights
become constants; and the heads, whose batch norms differ by level, get convolutions of each level's own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import Fusion
from efficientdet.network.heads import Head
from efficientdet.network.layers import conv_norm_pairs


def fold(model: EfficientDet) -> EfficientDet:
    """Rewrite a network for inference.

    Args:
        model: in any mode; not changed.

    Returns:
        A network of the same spec and outputs (to rounding), in evaluation mode, for inference alone: its parameters
        take no gradient, and its state dict has other names.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_head(folded.class_head)
    _fold_head(folded.box_head)
    for conv, norm in conv_norm_pairs(folded):
        conv.weight, conv.bias = folded_parameters(conv, norm)
        _replace(folded, norm, nn.Identity())
    for module in folded.modules():
        if isinstance(module, Fusion) and module.kind != "none":
            weights = module.normalized_weights()
            module.kind = "unbounded"  # the weights are used as they stand
            module.weights = None if weights is None else nn.Parameter(weights, requires_grad=False)
    return folded


def folded_parameters(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of a convolution that does the work of the batch norm behind it too.

    Args:
        conv: the convolution, with or without a bias.
        norm: the batch norm on its output; its running statistics count.

    Returns:
        (outputs, inputs, h, w) and (outputs,), computed in float64, in the type of the weights, without gradient.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    kind = conv.weight.dtype
    # Back into the layout of before: the product of a channels_last tensor need not be one.
    layout = torch.channels_last if conv.weight.is_contiguous(memory_format=torch.channels_last) else None
    weight = weight.to(kind).contiguous(memory_format=layout or torch.contiguous_format)
    return nn.Parameter(weight, requires_grad=False), nn.Parameter(bias.to(kind), requires_grad=False)


def _fold_head(head: Head) -> None:
    """Give each level pointwise convolutions of its own, in the places of its batch norms; the depthwise ones stay."""
    for repeat, norms in enumerate(head.bns):
        conv: Any = head.convs[repeat]
        assert isinstance(norms, nn.ModuleList)
        for level, norm in enumerate(norms):
            pointwise = copy.deepcopy(conv.pointwise)
            pointwise.weight, pointwise.bias = folded_parameters(conv.pointwise, norm)  # type: ignore[arg-type]
            norms[level] = pointwise
        head.convs[repeat] = conv.depthwise


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
