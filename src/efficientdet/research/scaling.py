"""Compound scaling as a tool (section 4.2): which phi costs so much, and what scaling one dimension alone costs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from efficientdet.errors import SettingError, unknown_name
from efficientdet.family import DepthRule, ModelSpec, compound_scaling
from efficientdet.network.count import count, count_parts
from efficientdet.network.efficientdet import EfficientDet

DIMENSIONS = ("resolution", "width", "depth", "compound")
LARGEST_PHI = 7.0
PHI_STEP = 0.125
LATENCY_ROUNDS = 5


def multiply_adds(spec: ModelSpec) -> float:
    """Convolution multiply-adds at the spec's input, batch 1, 90 classes."""
    return float(count(spec)[1])


def forward_ms(spec: ModelSpec, device: str = "cpu", rounds: int = LATENCY_ROUNDS) -> list[float]:
    """Milliseconds of each of some forward passes, batch 1, at the spec's input, in channels_last, after a first one.

    Plain PyTorch in float32 with fresh weights and 90 classes; no decoding, no suppression.
    """
    model = EfficientDet(spec, 90).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.zeros(1, 3, spec.image_size, spec.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return [milliseconds(lambda: model(images), device) for _ in range(rounds + 1)][1:]


def milliseconds(work: Callable[[], object], device: str) -> float:
    """How long a piece of work takes, until the device is done with it."""
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def latency_ms(spec: ModelSpec, device: str = "cpu") -> float:
    """Median milliseconds of one forward pass; see `forward_ms`."""
    return statistics.median(forward_ms(spec, device))


def relative_time_per_multiply_add(
    latencies: Mapping[str, float], costs: Mapping[str, float], base: str
) -> dict[str, float]:
    """How far time is from growing with cost: time over multiply-adds of each model, over that of a base model.

    Args:
        latencies: by name, in any unit of time.
        costs: multiply-adds by name, in any unit; for every name in `latencies`.
        base: the name that gets 1.

    Returns:
        By name; 1 is proportional, below 1 is faster than that.
    """
    unit = latencies[base] / costs[base]
    return {name: latency / costs[name] / unit for name, latency in latencies.items()}


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
    """What the scaling formula says the feature network and heads grow with: depth * width**2 * resolution**2.

    Depth counts the cells and the convolutions of a head. The backbone has a law of its own, EfficientNet's. Of the
    feature network and heads it leaves out what is linear in width (depthwise convolutions, laterals, the heads' last
    convolution), which weighs less the larger the model: the real cost grows more slowly.
    """
    return float((spec.depth + spec.head_depth) * spec.width**2 * spec.image_size**2)


def pyramid_multiply_adds(spec: ModelSpec) -> float:
    """Convolution multiply-adds of feature network and heads, the part that `law` is about."""
    return float(sum(cost for part, (_, cost) in count_parts(spec).items() if part != "backbone"))


class PowerFit(NamedTuple):
    """A fit of y = factor * x**slope by least squares of the logarithms, and the share of variance it explains."""

    slope: float
    factor: float
    r_squared: float


def fit_power(x: Sequence[float], y: Sequence[float]) -> PowerFit:
    """Fit y = factor * x**slope to positive numbers.

    Raises:
        SettingError: fewer than three points, which any line fits, or a number that is not above 0.
    """
    if len(x) < 3 or min(*x, *y) <= 0:
        raise SettingError(f"a power law needs three points above 0, not x {list(x)}, y {list(y)}")
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    slope, offset = np.polyfit(log_x, log_y, 1)
    residual = log_y - (slope * log_x + offset)
    spread = log_y - log_y.mean()
    return PowerFit(float(slope), float(np.exp(offset)), float(1 - residual @ residual / (spread @ spread)))


def scaling_rows(largest_phi: int = 6) -> list[dict[str, Any]]:
    """One row for each whole phi: the formula's model, its cost, and how the cost grows beside 2**phi and the law.

    The columns `times phi 0` and `2^phi` are about the whole network, `pyramid + heads GMAC`, `times` and `law` about
    what the law covers.
    """
    rows = []
    first = compound_scaling(0)
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
    """One row a step: GMAC of D0's formula scaled in each of `DIMENSIONS` alone."""
    return [
        {"steps": steps} | {name: round(multiply_adds(scale_alone(name, steps)) / 1e9, 2) for name in DIMENSIONS}
        for steps in range(largest_step + 1)
    ]
