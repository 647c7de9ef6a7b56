"""Compound scaling (section 4.2): the model that fits a budget, and what scaling costs beside its law."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from efficientdet.errors import SettingError, unknown_name
from efficientdet.family import DepthRule, ModelSpec, compound_scaling
from efficientdet.network.count import count, count_parts

DIMENSIONS = ("resolution", "width", "depth", "compound")
LARGEST_PHI = 7.0
PHI_STEP = 0.125


def multiply_adds(spec: ModelSpec) -> float:
    """Multiply-adds of the convolutions at the spec's image size, batch 1, 90 classes."""
    return float(count(spec)[1])


def pyramid_multiply_adds(spec: ModelSpec) -> float:
    """Multiply-adds of the feature network and the heads, the parts that `law` describes."""
    return multiply_adds(spec) - count_parts(spec)["backbone"][1]


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
    best = compound_scaling(0, depth_rule)
    least = cost(best)
    if least > target:
        raise SettingError(f"the smallest model, phi 0, costs {least:.4g} already; the target is {target:.4g}")
    low, high = 0, int(LARGEST_PHI / PHI_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        spec = compound_scaling(middle * PHI_STEP, depth_rule)
        if cost(spec) <= target:
            low, best = middle, spec
        else:
            high = middle - 1
    return best


def scale_alone(dimension: str, steps: int) -> ModelSpec:
    """Make D0 larger in one dimension alone.

    Args:
        dimension: `resolution` (128 pixels a step), `width` (times 1.35 a step), `depth` (a cell a step, and a
            convolution of the heads every third), or `compound` (phi 1 a step).
        steps: number of steps.

    Raises:
        UnknownNameError: the dimension is not known.
    """
    base = compound_scaling(0)
    changes: dict[str, dict[str, Any]] = {
        "resolution": {"image_size": base.image_size + 128 * steps},
        "width": {"width": max(8, round(base.width * 1.35**steps / 8) * 8)},
        "depth": {"depth": base.depth + steps, "head_depth": base.head_depth + steps // 3},
    }
    if dimension == "compound":
        return compound_scaling(steps)
    if dimension not in changes:
        raise unknown_name("dimension", dimension, DIMENSIONS)
    return dataclasses.replace(base, name=f"{base.name}-{dimension}+{steps}", **changes[dimension])


def scaling_rows(largest_phi: int = 6) -> list[dict[str, Any]]:
    """One row for each whole phi: the formula's model, its cost, and how the cost grows beside 2**phi and the law.

    `times phi 0` and `2^phi` are about the whole network; `pyramid + heads GMAC`, `times` and `law` about what the law
    describes.
    """
    rows, first = [], compound_scaling(0)
    for phi in range(largest_phi + 1):
        spec = compound_scaling(phi)
        rows.append(
            {
                "phi": phi,
                "backbone": spec.backbone,
                "input": spec.image_size,
                "width": spec.width,
                "depth": spec.depth,
                "head": spec.head_depth,
                "GMAC": round(multiply_adds(spec) / 1e9, 2),
                "times phi 0": round(multiply_adds(spec) / multiply_adds(first), 2),
                "2^phi": 2**phi,
                "pyramid + heads GMAC": round(pyramid_multiply_adds(spec) / 1e9, 2),
                "times": round(pyramid_multiply_adds(spec) / pyramid_multiply_adds(first), 2),
                "law": round(law(spec) / law(first), 2),
            }
        )
    return rows


def alone_rows(largest_step: int = 6) -> list[dict[str, Any]]:
    """One row for each number of steps: GMAC of D0 scaled in each of `DIMENSIONS` alone."""
    return [
        {"steps": steps} | {name: round(multiply_adds(scale_alone(name, steps)) / 1e9, 2) for name in DIMENSIONS}
        for steps in range(largest_step + 1)
    ]
