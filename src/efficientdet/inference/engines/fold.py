"""A trained network rewritten for inference: the same function in fewer operations.

Batch norms become part of the convolution before them, along with the bias that they make redundant; fusion weights
become constants; and the heads, whose batch norms differ by level, get convolutions of each level's own.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import Fusion
from efficientdet.network.heads import Head
from efficientdet.network.layers import SeparableConv2d

# Any input finds which norm follows which convolution; this one is the smallest with a place at every level.
PROBE_SIZE = 64


def fold(model: EfficientDet) -> EfficientDet:
    """Rewrite a network for inference.

    Args:
        model: in any mode; not changed.

    Returns:
        A network of the same spec and outputs (to rounding), in evaluation mode, for inference alone: its parameters
        take no gradient, and its state dict has other names.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    folded.class_head = FoldedHead(folded.class_head)  # type: ignore[assignment]
    folded.box_head = FoldedHead(folded.box_head)  # type: ignore[assignment]
    for conv, norm in _conv_norm_pairs(folded):
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


class FoldedHead(nn.Module):
    """A head whose batch norms are part of the convolutions: the same depthwise, a pointwise one of each level's own.

    Args:
        head: a trained head; not changed.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.outputs_per_anchor = head.outputs_per_anchor
        self.act = head.act
        self.predict = head.predict
        self.convs = nn.ModuleList(
            nn.ModuleList(_folded_separable(conv, norm) for norm in norms)  # type: ignore[arg-type, attr-defined]
            for conv, norms in zip(head.convs, head.bns, strict=True)
        )

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """List of (B, width, h, w) to list of (B, h * w * anchors_per_cell, outputs_per_anchor)."""
        outputs = []
        for level, x in enumerate(pyramid):
            for convs in self.convs:
                x = self.act(convs[level](x))  # type: ignore[index]
            x = self.predict(x).permute(0, 2, 3, 1)  # (B, h, w, anchors * outputs)
            outputs.append(x.reshape(x.shape[0], -1, self.outputs_per_anchor))
        return outputs


def _folded_separable(conv: SeparableConv2d, norm: nn.BatchNorm2d) -> SeparableConv2d:
    """A separable convolution that shares the depthwise part and does the norm's work in the pointwise one."""
    result = copy.copy(conv)
    pointwise = copy.copy(conv.pointwise)
    pointwise._parameters = {}
    pointwise.weight, pointwise.bias = folded_parameters(conv.pointwise, norm)
    result._modules = {"depthwise": conv.depthwise, "pointwise": pointwise}
    return result


@torch.no_grad()
def _conv_norm_pairs(model: EfficientDet) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions with the batch norm that reads their output, found by running the network once.

    This works for any backbone, whatever its modules are called. Subclasses of batch norm, such as those with an
    activation inside, are left alone.
    """
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # the tensors too, so that no two live ones share an id
    pairs = []

    def note_output(module: nn.Module, _: object, output: Tensor) -> None:
        made[id(output)] = (output, module)  # type: ignore[assignment]

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][1], module))

    handles = [
        module.register_forward_hook(note_output) for module in model.modules() if isinstance(module, nn.Conv2d)
    ] + [module.register_forward_pre_hook(note_input) for module in model.modules() if type(module) is nn.BatchNorm2d]
    parameter = next(model.parameters())
    try:
        model(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return pairs  # type: ignore[return-value]


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
