"""Compound scaling as a tool (section 4.2): which phi costs so much, and what scaling one dimension alone costs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from efficientdet.analysis.models import count
from efficientdet.errors import SettingError, unknown_name
from efficientdet.family import DepthRule, ModelSpec, compound_scaling
from efficientdet.network.efficientdet import EfficientDet

DIMENSIONS = ("resolution", "width", "depth", "compound")
LARGEST_PHI = 7.0
PHI_STEP = 0.125
LATENCY_ROUNDS = 5


def multiply_adds(spec: ModelSpec) -> float:
    """Convolution multiply-adds at the spec's input, batch 1, 90 classes."""
    return float(count(spec)[1])


def latency_ms(spec: ModelSpec, device: str = "cpu") -> float:
    """Median milliseconds of one forward pass, batch 1, at the spec's input, in channels_last."""
    model = EfficientDet(spec, 90).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.zeros(1, 3, spec.image_size, spec.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(LATENCY_ROUNDS + 1):
            start = time.perf_counter()
            model(images)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    return sorted(times[1:])[LATENCY_ROUNDS // 2]


def find_phi(
    target: float, cost: Callable[[ModelSpec], float] = multiply_adds, depth_rule: DepthRule = "released"
) -> ModelSpec:
    """Find the largest model of the family, in steps of phi / 8, that costs no more than a target.

    Args:
        target: in whatever `cost` gives.
        cost: of a spec; grows with phi.
        depth_rule: see `compound_scaling`.

    Returns:
        The spec.

    Raises:
        SettingError: the target is not a positive number, or below the cost of phi 0.
    """
    if not (math.isfinite(target) and target > 0):
        raise SettingError(f"the target is {target}; it must be a number above 0")
    low, high = 0, int(LARGEST_PHI / PHI_STEP)
    smallest = compound_scaling(0, depth_rule)
    least = cost(smallest)
    if least > target:
        raise SettingError(f"the smallest model, phi 0, costs {least:.4g} already; the target is {target:.4g}")
    best = smallest
    while low < high:
        middle = (low + high + 1) // 2
        spec = compound_scaling(middle * PHI_STEP, depth_rule)
        if cost(spec) <= target:
            low, best = middle, spec
        else:
            high = middle - 1
    return best


def scale_alone(dimension: str, steps: int, base: ModelSpec | None = None) -> ModelSpec:
    """Make a model larger in one dimension alone, to show what compound scaling saves.

    Args:
        dimension: `resolution` (128 pixels a step), `width` (times 1.35 a step), `depth` (a cell and a third of a head
            layer a step), or `compound` (phi 1 a step).
        steps: how many.
        base: what to start from; D0 when None.

    Raises:
        UnknownNameError: the dimension is not known.
    """
    base = base or compound_scaling(0)
    if dimension == "resolution":
        changes: dict[str, Any] = {"image_size": base.image_size + 128 * steps}
    elif dimension == "width":
        changes = {"width": max(8, round(base.width * 1.35**steps / 8) * 8)}
    elif dimension == "depth":
        changes = {"depth": base.depth + steps, "head_depth": base.head_depth + steps // 3}
    elif dimension == "compound":
        return compound_scaling(steps)
    else:
        raise unknown_name("dimension", dimension, DIMENSIONS)
    return dataclasses.replace(base, name=f"{base.name}-{dimension}+{steps}", **changes)


def law(spec: ModelSpec) -> float:
    """What the paper says cost grows with: depth * width**2 * resolution**2 of the feature network and heads."""
    return float((spec.depth + spec.head_depth) * spec.width**2 * spec.image_size**2)


def scaling_rows(largest_phi: int = 6) -> list[dict[str, Any]]:
    """One row for each whole phi: the formula's model, its cost, and its cost over what 2**phi and the law predict."""
    rows = []
    first = compound_scaling(0)
    first_cost, first_law = multiply_adds(first), law(first)
    for phi in range(largest_phi + 1):
        spec = compound_scaling(phi)
        cost = multiply_adds(spec)
        rows.append(
            {
                "phi": phi,
                "backbone": spec.backbone,
                "input": spec.image_size,
                "width": spec.width,
                "depth": spec.depth,
                "head": spec.head_depth,
                "GMAC": round(cost / 1e9, 2),
                "times phi 0": round(cost / first_cost, 2),
                "2^phi": 2**phi,
                "law": round(law(spec) / first_law, 2),
            }
        )
    return rows
