"""Gradient checkpointing: the backward pass recomputes feature maps instead of the forward pass keeping them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from efficientdet.network.efficientdet import EfficientDet


def checkpoint_gradients(model: EfficientDet) -> None:
    """Keep only the inputs of the backbone's blocks and of the feature network's nodes for the backward pass.

    Loss, gradients, random numbers and running statistics stay the same; a step takes about 40 % longer.

    Args:
        model: changed in place. A backbone without known blocks (timm's) is recomputed as a whole.
    """
    stages = model.backbone.stages()
    blocks = [block for stage in stages[1:] for part in stage for block in part.children()]
    nodes = [node for cell in model.feature_network.cells for node in cell.children()]
    for module in [*(blocks or [model.backbone]), *nodes]:
        module.forward = functools.partial(_checkpointed, module)


def _checkpointed(module: nn.Module, *inputs: Any) -> Any:
    forward = functools.partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _fixed_statistics(module))
    )


@contextmanager
def _fixed_statistics(module: nn.Module) -> Iterator[None]:
    """Leave running statistics alone while recomputing: the forward pass has updated them already."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    before = [counter.clone() for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for counter, value in zip(counters, before, strict=True):
            counter.copy_(value)
