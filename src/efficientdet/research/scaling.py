"""Compound scaling (section 4.2): the model that fits a budget, and what scaling costs beside its law."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.errors import SettingError
from efficientdet.family import DepthRule, ModelSpec, compound_scaling
from efficientdet.network.count import PARTS, count_parts
from efficientdet.research.figures import BLUE, GRAY, LOWER_RIGHT, ORANGE, RED, TEAL, Series, plot, save_figure
from efficientdet.text import markdown_table

# The parts that `law` describes.
PYRAMID = ("feature_network", "class_head", "box_head")
LARGEST_PHI = 7.0
PHI_STEP = 0.125
# The largest phi of tables and figures: the formula's D7 is larger than the released one.
TABLED_PHI = 6
QUANTITIES = {"feature network": PYRAMID[:1], "feature network and heads": PYRAMID, "whole model": PARTS}


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


def scaling_rows(largest_phi: int = TABLED_PHI) -> list[dict[str, Any]]:
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


D0 = compound_scaling(0)
# D0 made larger in one dimension alone, or in all, by a number of steps.
DIMENSIONS: dict[str, Callable[[int], ModelSpec]] = {
    "resolution": lambda n: dataclasses.replace(D0, image_size=D0.image_size + 128 * n),
    "width": lambda n: dataclasses.replace(D0, width=round(D0.width * 1.35**n / 8) * 8),
    "depth": lambda n: dataclasses.replace(D0, depth=D0.depth + n, head_depth=D0.head_depth + n // 3),
    "compound": compound_scaling,
}


def scaling_parts(out: Path) -> dict[str, str]:
    """Write the figures of the report into a folder, and return its tables and numbers by name."""
    return _law(out) | _alone(out)


def fit_power(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and R² of the line through (log x, log y): y is proportional to x where the slope is 1."""
    log_x, log_y = np.log(x), np.log(y)
    return float(np.polyfit(log_x, log_y, 1)[0]), float(np.corrcoef(log_x, log_y)[0, 1] ** 2)


def _law(out: Path) -> dict[str, str]:
    specs = [compound_scaling(phi) for phi in range(TABLED_PHI + 1)]
    laws = [law(spec) / law(specs[0]) for spec in specs]
    costs = {name: [multiply_adds(spec, parts) / 1e9 for spec in specs] for name, parts in QUANTITIES.items()}
    rows, series = [], []
    for (name, own), color in zip(costs.items(), (TEAL, ORANGE, BLUE), strict=True):
        slope, r_squared = fit_power(laws, own)
        rows.append({"cost of": name, "over": "the law", "slope": f"{slope:.3f}", "R²": f"{r_squared:.4f}"})
        points = {str(phi): point for phi, point in enumerate(zip(laws, own, strict=True))}
        series.append(Series(f"{name}: slope {slope:.2f}", points, "o-", color, LOWER_RIGHT))
    slope, r_squared = fit_power([2.0**phi for phi in range(TABLED_PHI + 1)], costs["whole model"])
    rows.append({"cost of": "whole model", "over": "2^phi", "slope": f"{slope:.3f}", "R²": f"{r_squared:.4f}"})
    first = costs["feature network and heads"][0]
    guide = {"first": (1.0, first), "last": (laws[-1], first * laws[-1])}
    series.append(Series("proportional to the law", guide, "--", GRAY, None))
    title = f"Cost over depth · width² · resolution², phi 0 to {TABLED_PHI}"
    save_figure(plot(title, "the law, phi 0 = 1", "GMAC", series), out / "scaling_law.png")
    return {
        "scaling": markdown_table(scaling_rows(TABLED_PHI)),
        "fits": markdown_table(rows),
        "step": f"{2**slope:.2f}",
        "backbone_share": f"{1 - first / costs['whole model'][0]:.0%}",
    }


def alone_rows(largest_step: int) -> list[dict[str, Any]]:
    """One row for each number of steps: GMAC of D0 made larger in each of `DIMENSIONS`."""
    return [
        {"steps": steps} | {name: round(multiply_adds(make(steps)) / 1e9, 2) for name, make in DIMENSIONS.items()}
        for steps in range(largest_step + 1)
    ]


def _alone(out: Path) -> dict[str, str]:
    rows = alone_rows(TABLED_PHI)
    series = [
        Series(name, {str(row["steps"]): (row["steps"], row[name]) for row in rows}, style, color, None)
        for name, style, color in zip(DIMENSIONS, ("s-", "^-", "D-", "v-"), (BLUE, TEAL, ORANGE, RED), strict=True)
    ]
    figure = plot("Cost of scaling D0 in one dimension alone", "steps", "GMAC", series, ("linear", "log"))
    save_figure(figure, out / "scaling_one_dimension.png")
    growth = (f"{name} {(rows[-1][name] / rows[0][name]) ** (1 / TABLED_PHI):.2f}x" for name in DIMENSIONS)
    return {"alone": markdown_table(rows), "growth": ", ".join(growth)}
