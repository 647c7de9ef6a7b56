"""Compound scaling (section 4.2): the model that fits a budget, and what scaling costs beside its law."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from efficientdet.errors import SettingError
from efficientdet.family import DepthRule, ModelSpec, compound_scaling
from efficientdet.network.count import PARTS, count_parts

# The parts that `law` describes.
PYRAMID = ("feature_network", "class_head", "box_head")
LARGEST_PHI = 7.0
PHI_STEP = 0.125


def multiply_adds(spec: ModelSpec, parts: Sequence[str] = PARTS) -> float:
    """Multiply-adds of the convolutions of some parts of a network at its image size, batch 1, 90 classes."""
    counts = count_parts(spec)
    return float(sum(counts[part][1] for part in parts))


def law(spec: ModelSpec) -> float:
    """What the scaling formula says that feature network and heads grow with: depth * width**2 * resolution**2.

    Depth counts the cells and the convolutions of a head. Left out is what is linear in the width (depthwise
    convolutions, laterals, the last convolution of the heads), so the real cost grows more slowly. The backbone follows
    EfficientNet's own law.
    """
    return float((spec.depth + spec.head_depth) * spec.width**2 * spec.image_size**2)


def find_phi(
    target: float, cost: Callable[[ModelSpec], float] = multiply_adds, depth_rule: DepthRule = "released"
) -> ModelSpec:
    """Find the largest model of the family, in steps of phi / 8 up to phi 7, whose cost is within a target.

    Args:
        target: the largest cost allowed.
        cost: computes the cost of a spec, in the target's unit; grows with phi.
        depth_rule: see `compound_scaling`.

    Returns:
        The spec.

    Raises:
        SettingError: the target is not a positive number, or below the cost of phi 0.
    """
    if not (math.isfinite(target) and target > 0):
        raise SettingError(f"the target is {target}; it must be a number above 0")
    least = cost(compound_scaling(0, depth_rule))
    if least > target:
        raise SettingError(f"the smallest model, phi 0, costs {least:.4g} already; the target is {target:.4g}")
    steps = range(int(LARGEST_PHI / PHI_STEP) + 1)
    within = bisect_right(steps, target, lo=1, key=lambda step: cost(compound_scaling(step * PHI_STEP, depth_rule)))
    return compound_scaling((within - 1) * PHI_STEP, depth_rule)


def scaling_rows(largest_phi: int = 6) -> list[dict[str, Any]]:
    """One row for each whole phi: the formula's model, its cost, and how the cost grows beside 2**phi and the law.

    `times phi 0` and `2^phi` are about the whole network; `pyramid + heads GMAC`, `times` and `law` about what the law
    describes.
    """
    rows, first = [], compound_scaling(0)
    for phi in range(largest_phi + 1):
        spec = compound_scaling(phi)
        whole, pyramid = multiply_adds(spec), multiply_adds(spec, PYRAMID)
        rows.append(
            {
                "phi": phi,
                "backbone": spec.backbone,
                "input": spec.image_size,
                "width": spec.width,
                "depth": spec.depth,
                "head": spec.head_depth,
                "GMAC": round(whole / 1e9, 2),
                "times phi 0": round(whole / multiply_adds(first), 2),
                "2^phi": 2**phi,
                "pyramid + heads GMAC": round(pyramid / 1e9, 2),
                "times": round(pyramid / multiply_adds(first, PYRAMID), 2),
                "law": round(law(spec) / law(first), 2),
            }
        )
    return rows
