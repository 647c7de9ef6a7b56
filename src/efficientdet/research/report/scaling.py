"""Section 4 of the report: the cost of compound scaling beside its law, and of scaling one dimension alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efficientdet.family import ModelSpec, compound_scaling
from efficientdet.network.count import count_parts
from efficientdet.research.report import figures
from efficientdet.research.report.markdown import table
from efficientdet.research.scaling import (
    DIMENSIONS,
    PowerFit,
    alone_rows,
    fit_power,
    law,
    multiply_adds,
    pyramid_multiply_adds,
    scaling_rows,
)

LARGEST_PHI = 6


def scaling_section(out: Path, largest_phi: int = LARGEST_PHI) -> str:
    """Write the pictures, and give the section.

    Args:
        out: folder of the pictures.
        largest_phi: how far to count, at least 2.
    """
    return "\n".join(["## 4. Compound scaling\n", _law(out, largest_phi), _alone(out, largest_phi)])


def feature_network_multiply_adds(spec: ModelSpec) -> float:
    """Convolution multiply-adds of the feature network alone."""
    return float(count_parts(spec)["feature_network"][1])


QUANTITIES = {
    "feature network": feature_network_multiply_adds,
    "feature network and heads": pyramid_multiply_adds,
    "whole model": multiply_adds,
}


def fits(largest_phi: int = LARGEST_PHI) -> dict[str, PowerFit]:
    """Fits of cost against the law, phi = 0, 1, ...: by name in `QUANTITIES`; and of the whole model against 2**phi."""
    specs = [compound_scaling(phi) for phi in range(largest_phi + 1)]
    laws = [law(spec) for spec in specs]
    found = {name: fit_power(laws, [cost(spec) for spec in specs]) for name, cost in QUANTITIES.items()}
    return found | {
        "2^phi": fit_power([2.0**phi for phi in range(largest_phi + 1)], [multiply_adds(spec) for spec in specs])
    }


def _law(out: Path, largest_phi: int) -> str:
    found = fits(largest_phi)
    rows = [
        {"cost of": "whole model" if name == "2^phi" else name, "over": "2^phi" if name == "2^phi" else "the law",
         "slope": f"{fit.slope:.3f}", "R²": f"{fit.r_squared:.4f}"}
        for name, fit in found.items()
    ]  # fmt: skip
    figures.save(_law_picture(largest_phi, found), out / "scaling_law")
    first = compound_scaling(0)
    backbone = 1 - pyramid_multiply_adds(first) / multiply_adds(first)
    return (
        "The formula's models (D5 to D7x as released leave it), counted. The law, depth * width^2 * resolution^2, is "
        "of the feature network and the heads, with cells and head convolutions together as depth; the backbone "
        f"follows EfficientNet's own.\n\n{table(scaling_rows(largest_phi))}\n"
        "A straight line through the logarithms, cost = factor * x^slope; a slope of 1 is proportional, R² the share "
        f"of the variance that the line explains:\n\n{table(rows)}\n"
        f"So a step of phi costs {2 ** found['2^phi'].slope:.2f} times as much for the whole model, where 2 is the "
        "rule of thumb. The line fits well, but its slope is not 1: the law leaves out what grows with the width and "
        "not its square. In the feature network that is little (depthwise convolutions, laterals); in the heads it is "
        f"the last convolution, whose 36 box and 810 class outputs do not widen; and {backbone:.0%} of the model of "
        "phi 0 is backbone.\n\n![Cost over the law](scaling_law.png)\n"
    )


def _law_picture(largest_phi: int, found: dict[str, PowerFit]) -> Any:
    first = law(compound_scaling(0))
    series = []
    colors = (figures.TEAL, figures.ORANGE, figures.BLUE)
    for (name, cost), color in zip(QUANTITIES.items(), colors, strict=True):
        points = {
            f"{phi}": (law(compound_scaling(phi)) / first, cost(compound_scaling(phi)) / 1e9)
            for phi in range(largest_phi + 1)
        }
        fit = found[name]
        title = f"{name}: slope {fit.slope:.2f}, R² {fit.r_squared:.4f}"
        series.append(figures.Series(title, points, color, is_line=True))
    guide = PowerFit(1.0, pyramid_multiply_adds(compound_scaling(0)) / 1e9, 1.0)
    return figures.labeled_points(
        f"Cost over depth · width² · resolution², phi 0 to {largest_phi}", "the law, phi 0 = 1", "multiply-adds, 10⁹",
        series, is_log=(True, True), guide=guide,
        guide_name="proportional to the law (from feature network and heads)",
    )  # fmt: skip


def _alone(out: Path, largest_phi: int) -> str:
    rows = alone_rows(largest_phi)
    columns = {name: [row[name] for row in rows] for name in DIMENSIONS}
    figure = figures.lines(
        "Cost of scaling D0 in one dimension alone", "steps", "multiply-adds, 10⁹",
        [row["steps"] for row in rows], columns,
    )  # fmt: skip
    figures.save(figure, out / "scaling_one_dimension")
    grows = ", ".join(f"{name} {(costs[-1] / costs[0]) ** (1 / largest_phi):.2f}x" for name, costs in columns.items())
    return (
        "### One dimension alone\n\nGMAC of D0 made larger by steps: resolution +128 pixels, width times 1.35, depth "
        "one cell more and a head convolution every third step, compound all of these and the backbone.\n\n"
        f"{table(rows)}\nWhat a step costs on average: {grows}.\n\n"
        "![Scaling one dimension alone](scaling_one_dimension.png)\n\n"
        "These are costs; what they buy is not known here. The paper's Figure 6 trained such models and shows compound "
        "scaling above scaling image size, channels, BiFPN layers or head layers alone, from 10 to 60 billion "
        "multiply-adds; it prints no numbers, and shows the two depths apart. Nor does the paper claim its "
        "coefficients to be the best: it calls them a heuristic. The costs say only how far each dimension goes for a "
        "budget: depth alone is so cheap that no reasonable number of cells comes to the compound model's cost.\n"
    )
