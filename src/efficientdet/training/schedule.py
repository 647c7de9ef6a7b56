"""Learning rate, optimizer and averaged weights (section 5.1; google/automl tf2/train_lib.py)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from efficientdet.network.backbones import Backbone
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.layers import BATCH_NORM_MOMENTUM
from efficientdet.training.config import TrainConfig

WARMUP_START = 0.1


def rate_factor(step: float, warmup_steps: int, total_steps: int) -> float:
    """Factor on the peak learning rate at a step: linear warm-up from 0.1, then a cosine down to 0."""
    if step < warmup_steps:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def batch_norm_momentum(total_steps: int) -> float:
    """Weight of a batch in the running statistics: the reference's 0.01, and up to 0.1 in runs of under 3,000 steps.

    At 0.01 the statistics average over some hundred steps. In a short run those include weights from long before, with
    which the statistics no longer match the network that is evaluated.
    """
    return min(0.1, max(BATCH_NORM_MOMENTUM, 30 / max(1, total_steps)))


def backbone_rates(backbone: Backbone, config: TrainConfig) -> dict[nn.Parameter, float]:
    """Factor on the learning rate of each parameter of the backbone, lower with each stage further from the heads."""
    rates = dict.fromkeys(backbone.parameters(), config.backbone_rate)
    for below_top, modules in enumerate(reversed(backbone.stages())):
        scale = config.backbone_rate * config.layer_decay**below_top
        rates |= {parameter: scale for module in modules for parameter in module.parameters()}
    return rates


def parameter_groups(model: EfficientDet, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay: kernels decay, norms, biases and fusion do not."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    rates = backbone_rates(model.backbone, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kernel = parameter.ndim > 1 and not name.endswith("fuse.weights")
            groups.setdefault((rates.get(parameter, 1.0), is_kernel), []).append(parameter)
    rate, decay = config.peak_learning_rate(), config.decay()
    return [
        {"params": parameters, "lr": rate * scale, "weight_decay": decay if is_kernel else 0.0}
        for (scale, is_kernel), parameters in groups.items()
    ]


def build_optimizer(model: EfficientDet, config: TrainConfig) -> Optimizer:
    """SGD with momentum 0.9, or AdamW, over `parameter_groups`."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.peak_learning_rate(), momentum=0.9, foreach=True)
    return AdamW(groups, lr=config.peak_learning_rate(), foreach=True)


@torch.no_grad()
def move_average(decay: float, averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
    """Move averaged weights towards the current ones, in place, as torch's `AveragedModel` requires.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates; integer counters are copied.
    """
    n = float(updates)
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
    else:
        torch._foreach_copy_(averaged, current)
