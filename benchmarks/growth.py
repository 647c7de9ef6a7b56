"""How the network's time grows with its multiply-adds: as a table, and as a chart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from results import Result

from efficientdet.family import MODELS
from efficientdet.network.count import count

# How far from proportional to the multiply-adds the time may be.
TOLERANCE = 0.3


class Point(NamedTuple):
    """A model: its multiply-adds in 10**9, its time, and its time for a GMAC over the first model's, by round."""

    name: str
    gmac: float
    milliseconds: float
    ratios: list[float]


def points(result: Result) -> list[Point]:
    """One a side; the others are measured by the first."""
    first, found = result.sides[0], []
    gmac_of = {
        side.label: count(
            dataclasses.replace(MODELS[side.label], image_size=side.facts["size"]), side.facts["num_classes"]
        )[1] / 1e9
        for side in result.sides
    }  # fmt: skip
    for side in result.sides:
        gmac = gmac_of[side.label]
        rounds = zip(side.round_medians(), first.round_medians(), strict=True)
        ratios = [own / gmac / (base / gmac_of[first.label]) for own, base in rounds]
        found.append(Point(side.label, gmac, median(side.times()), ratios))
    return found


def is_proportional(point: Point) -> bool:
    """Whether it takes as long for a GMAC as the first model, to the tolerance."""
    return abs(median(point.ratios) - 1) <= TOLERANCE


def draw(found: Sequence[Point], path: Path) -> None:
    """Write an SVG: time over multiply-adds, both logarithmic, and the band that is proportional to the first."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    matplotlib.rcParams["svg.hashsalt"] = "efficientdet"  # else each drawing has names of its own
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    ends = [min(point.gmac for point in found) / 1.5, max(point.gmac for point in found) * 1.5]
    rate = found[0].milliseconds / found[0].gmac
    for factor, style in ((1, "-"), (1 - TOLERANCE, ":"), (1 + TOLERANCE, ":")):
        axes.plot(ends, [rate * gmac * factor for gmac in ends], style, color="gray", linewidth=1)
    axes.plot([point.gmac for point in found], [point.milliseconds for point in found], "o")
    for point in found:
        axes.annotate(point.name, (point.gmac, point.milliseconds), (8, -10), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds, 10⁹", ylabel="network, ms")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
