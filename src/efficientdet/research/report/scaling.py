"""Section 4 of the report: the cost of compound scaling beside its law, and of scaling one dimension alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from efficientdet.family import ModelSpec, compound_scaling
from efficientdet.network.count import count_parts
from efficientdet.research.figures import BLUE, GRAY, LOWER_RIGHT, MARKERS, ORANGE, RED, TEAL, Series, plot, save_figure
from efficientdet.research.markdown import table
from efficientdet.research.scaling import (
    DIMENSIONS,
    alone_rows,
    law,
    multiply_adds,
    pyramid_multiply_adds,
    scaling_rows,
)

LARGEST_PHI = 6


def feature_network_multiply_adds(spec: ModelSpec) -> float:
    """Multiply-adds of the feature network alone."""
    return float(count_parts(spec)["feature_network"][1])


QUANTITIES = {
    "feature network": feature_network_multiply_adds,
    "feature network and heads": pyramid_multiply_adds,
    "whole model": multiply_adds,
}


def scaling_section(out: Path) -> str:
    """Write the figures into a folder, and return the section."""
    return f"## 4. Compound scaling\n\n{_law(out)}\n{_alone(out)}"


def fit_power(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and R² of the line through (log x, log y): y is proportional to x where the slope is 1."""
    log_x, log_y = np.log(x), np.log(y)
    return float(np.polyfit(log_x, log_y, 1)[0]), float(np.corrcoef(log_x, log_y)[0, 1] ** 2)


def _law(out: Path) -> str:
    specs = [compound_scaling(phi) for phi in range(LARGEST_PHI + 1)]
    laws = [law(spec) / law(specs[0]) for spec in specs]
    costs = {name: [cost(spec) / 1e9 for spec in specs] for name, cost in QUANTITIES.items()}
    rows, series = [], []
    for (name, own), color in zip(costs.items(), (TEAL, ORANGE, BLUE), strict=True):
        slope, r_squared = fit_power(laws, own)
        rows.append({"cost of": name, "over": "the law", "slope": f"{slope:.3f}", "R²": f"{r_squared:.4f}"})
        points = {str(phi): point for phi, point in enumerate(zip(laws, own, strict=True))}
        series.append(Series(f"{name}: slope {slope:.2f}", points, color, "-", label_at=LOWER_RIGHT))
    slope, r_squared = fit_power([2.0**phi for phi in range(LARGEST_PHI + 1)], costs["whole model"])
    rows.append({"cost of": "whole model", "over": "2^phi", "slope": f"{slope:.3f}", "R²": f"{r_squared:.4f}"})
    first = costs["feature network and heads"][0]
    guide = {"first": (1.0, first), "last": (laws[-1], first * laws[-1])}
    series.append(Series("proportional to the law", guide, GRAY, "--", "", label_at=None))
    title = f"Cost over depth · width² · resolution², phi 0 to {LARGEST_PHI}"
    save_figure(plot(title, "the law, phi 0 = 1", "GMAC", series), out / "scaling_law.png")
    backbone = 1 - first / costs["whole model"][0]
    return (
        "Models of the formula, which the released D5, D6, D7 and D7x leave. The law, depth * width^2 * resolution^2, "
        "is of the feature network and the heads; depth counts cells and head convolutions. The backbone follows "
        f"EfficientNet's law.\n\n{table(scaling_rows(LARGEST_PHI))}\n"
        "Fitted lines, log cost over log of the law; cost is proportional to the law where the slope is 1:\n\n"
        f"{table(rows)}\nA step of phi multiplies the cost of the whole model by {2**slope:.2f}; EfficientNet's law "
        "aims at 2. Slopes are below 1 because the law leaves out what grows with the width and not its square: in the "
        "feature network little (depthwise convolutions, laterals), in the heads the last convolution, whose outputs "
        f"do not widen. And {backbone:.0%} of the model of phi 0 is backbone.\n\n"
        "![Cost over the law](scaling_law.png)\n"
    )


def _alone(out: Path) -> str:
    rows = alone_rows(LARGEST_PHI)
    series = [
        Series(name, {str(row["steps"]): (row["steps"], row[name]) for row in rows}, color, "-", marker, label_at=None)
        for name, color, marker in zip(DIMENSIONS, (BLUE, TEAL, ORANGE, RED), MARKERS, strict=False)
    ]
    figure = plot("Cost of scaling D0 in one dimension alone", "steps", "GMAC", series, ("linear", "log"))
    save_figure(figure, out / "scaling_one_dimension.png")
    growth = ", ".join(f"{name} {(rows[-1][name] / rows[0][name]) ** (1 / LARGEST_PHI):.2f}x" for name in DIMENSIONS)
    return (
        "### One dimension alone\n\nGMAC of D0, made larger in steps: resolution by 128 pixels, width by 1.35 times, "
        "depth by a cell and every third step a head convolution; compound by all of these and the backbone.\n\n"
        f"{table(rows)}\nA step multiplies the cost on average by: {growth}.\n\n"
        "![Scaling one dimension alone](scaling_one_dimension.png)\n\n"
        "What the models reach for their cost is in the paper's Figure 6, which trained them: compound scaling is "
        "better than any dimension alone from 10 to 60 GMAC. It prints no numbers.\n"
    )
