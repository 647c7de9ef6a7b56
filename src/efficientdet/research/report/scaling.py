"""Section 4 of the report: the cost of compound scaling beside its law, and of scaling one dimension alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.family import ModelSpec, compound_scaling
from efficientdet.network.count import PARTS
from efficientdet.research.figures import BLUE, GRAY, LOWER_RIGHT, ORANGE, RED, TEAL, Series, plot, save_figure
from efficientdet.research.scaling import PYRAMID, law, multiply_adds, scaling_rows
from efficientdet.text import markdown_table

LARGEST_PHI = 6
QUANTITIES = {"feature network": PYRAMID[:1], "feature network and heads": PYRAMID, "whole model": PARTS}
BASE = compound_scaling(0)

# D0 made larger in one dimension alone, or in all, by a number of steps.
DIMENSIONS: dict[str, Callable[[int], ModelSpec]] = {
    "resolution": lambda n: dataclasses.replace(BASE, image_size=BASE.image_size + 128 * n),
    "width": lambda n: dataclasses.replace(BASE, width=round(BASE.width * 1.35**n / 8) * 8),
    "depth": lambda n: dataclasses.replace(BASE, depth=BASE.depth + n, head_depth=BASE.head_depth + n // 3),
    "compound": compound_scaling,
}


def scaling_parts(out: Path) -> dict[str, str]:
    """Write the figures into a folder, and return the tables and numbers."""
    return _law(out) | _alone(out)


def fit_power(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and R² of the line through (log x, log y): y is proportional to x where the slope is 1."""
    log_x, log_y = np.log(x), np.log(y)
    return float(np.polyfit(log_x, log_y, 1)[0]), float(np.corrcoef(log_x, log_y)[0, 1] ** 2)


def _law(out: Path) -> dict[str, str]:
    specs = [compound_scaling(phi) for phi in range(LARGEST_PHI + 1)]
    laws = [law(spec) / law(specs[0]) for spec in specs]
    costs = {name: [multiply_adds(spec, parts) / 1e9 for spec in specs] for name, parts in QUANTITIES.items()}
    rows, series = [], []
    for (name, own), color in zip(costs.items(), (TEAL, ORANGE, BLUE), strict=True):
        slope, r_squared = fit_power(laws, own)
        rows.append({"cost of": name, "over": "the law", "slope": f"{slope:.3f}", "R²": f"{r_squared:.4f}"})
        points = {str(phi): point for phi, point in enumerate(zip(laws, own, strict=True))}
        series.append(Series(f"{name}: slope {slope:.2f}", points, "o-", color, LOWER_RIGHT))
    slope, r_squared = fit_power([2.0**phi for phi in range(LARGEST_PHI + 1)], costs["whole model"])
    rows.append({"cost of": "whole model", "over": "2^phi", "slope": f"{slope:.3f}", "R²": f"{r_squared:.4f}"})
    first = costs["feature network and heads"][0]
    guide = {"first": (1.0, first), "last": (laws[-1], first * laws[-1])}
    series.append(Series("proportional to the law", guide, "--", GRAY, None))
    title = f"Cost over depth · width² · resolution², phi 0 to {LARGEST_PHI}"
    save_figure(plot(title, "the law, phi 0 = 1", "GMAC", series), out / "scaling_law.png")
    return {
        "scaling": markdown_table(scaling_rows(LARGEST_PHI)),
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
    rows = alone_rows(LARGEST_PHI)
    series = [
        Series(name, {str(row["steps"]): (row["steps"], row[name]) for row in rows}, style, color, None)
        for name, style, color in zip(DIMENSIONS, ("s-", "^-", "D-", "v-"), (BLUE, TEAL, ORANGE, RED), strict=True)
    ]
    figure = plot("Cost of scaling D0 in one dimension alone", "steps", "GMAC", series, ("linear", "log"))
    save_figure(figure, out / "scaling_one_dimension.png")
    growth = (f"{name} {(rows[-1][name] / rows[0][name]) ** (1 / LARGEST_PHI):.2f}x" for name in DIMENSIONS)
    return {"alone": markdown_table(rows), "growth": ", ".join(growth)}
