"""Parameters and multiply-adds of networks, counted from the code, and the family as a table of them."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from efficientdet.family import MODELS, PUBLISHED, PUBLISHED_AP, ModelSpec
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet
from efficientdet.network.layers import Relu6, Swish

PARTS = ("backbone", "feature_network", "class_head", "box_head")


@lru_cache
def count_parts(
    spec: ModelSpec, num_classes: int = COCO_SLOTS, size: tuple[int, int] | None = None
) -> dict[str, tuple[int, int]]:
    """Count the parameters and multiply-adds of each part of a network, for one image.

    Args:
        spec: the network.
        num_classes: classes of its head.
        size: (height, width) of the image; None for the spec's size.

    The multiply-adds are those of the convolutions and linear layers, squeeze-and-excite included; batch norms,
    activations, pooling, resizing, fusion and biases are not counted. The network is built on torch's meta device, so
    nothing is computed.

    Returns:
        (learnable parameters, multiply-adds) by the names in `PARTS`.
    """
    with torch.device("meta"), torch.no_grad():
        model = EfficientDet(spec, num_classes).eval()
        parameters = {part: sum(p.numel() for p in model.get_submodule(part).parameters()) for part in PARTS}
        _simplify(model)
        multiply_adds: Counter[str] = Counter()
        for part in PARTS:
            for module in model.get_submodule(part).modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.register_forward_hook(partial(_add_up, multiply_adds, part))
        model(torch.empty(1, 3, *(size or (spec.image_size, spec.image_size))))
    return {part: (parameters[part], multiply_adds[part]) for part in PARTS}


def _add_up(
    multiply_adds: Counter[str], part: str, module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    """Each number of a layer's output costs as many multiply-adds as its weights have."""
    multiply_adds[part] += output.numel() * module.weight[0].numel()


def _simplify(model: nn.Module) -> None:
    """Leave out norms and activations, which are not counted but take most of the time on the meta device."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | Swish | Relu6):
                setattr(module, name, nn.Identity())


def count(spec: ModelSpec, num_classes: int = COCO_SLOTS, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Learnable parameters and multiply-adds of the whole network; see `count_parts`."""
    parts = count_parts(spec, num_classes, size).values()
    return sum(parameters for parameters, _ in parts), sum(multiply_adds for _, multiply_adds in parts)


def family_rows() -> list[dict[str, Any]]:
    """One row for each model: its scaling, the counted figures, and the published ones."""
    rows = []
    for name, spec in MODELS.items():
        parameters, multiply_adds = count(spec)
        rows.append(
            {
                "name": name,
                "backbone": spec.backbone,
                "input": spec.image_size,
                "width": spec.width,
                "depth": spec.depth,
                "head": spec.head_depth,
                "params M": round(parameters / 1e6, 2),
                "published M": round(PUBLISHED[name][0] / 1e6, 2),
                "GMAC": round(multiply_adds / 1e9, 2),
                "published GMAC": round(PUBLISHED[name][1] / 1e9, 2),
                "published AP": PUBLISHED_AP[name],
            }
        )
    return rows
