"""Figures of matplotlib, drawn without its global state, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from efficientdet.atomic_write import replacing
from efficientdet.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, TEAL, ORANGE, RED, VIOLET, GRAY = "#2f6fb7", "#2a9d8f", "#e9a23b", "#d1603d", "#8d5a97", "#667080"
MARKERS = ("s", "^", "D", "v", "P", "X")
DOTS_PER_INCH = 130
# Places of a label, (right, up) in points from its marker.
RIGHT, LEFT, UPPER_LEFT, LOWER_RIGHT = (9, 0), (-9, 0), (-7, 6), (9, -6)

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: its name in the legend.
        points: (x, y) by label.
        color: color of line, markers and labels.
        line: matplotlib's style of the line that connects the points; empty for none.
        marker: matplotlib's marker; empty for none.
        is_hollow: whether markers are drawn without a filling.
        label_at: place of the labels, such as `RIGHT`; None for no labels.
    """

    name: str
    points: Mapping[str, tuple[float, float]]
    color: str
    line: str = ""
    marker: str = "o"
    is_hollow: bool = False
    label_at: tuple[float, float] | None = RIGHT


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure: Figure = require("matplotlib.figure", "report").Figure(figsize=(width, height), layout="constrained")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, such as `.png` or `.svg`."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, metadata={"Date": None} if path.suffix == ".svg" else {})


def plot(
    title: str, x_label: str, y_label: str, series: Sequence[Series], scales: tuple[Scale, Scale] = ("log", "log")
) -> Figure:
    """Draw series of labeled points.

    Args:
        title: title of the figure.
        x_label: name and unit of x.
        y_label: name and unit of y.
        series: the series, each with at least one point.
        scales: scales of x and y.
    """
    figure = new_figure(10.5, 6.4)
    axes = figure.add_subplot()
    for one in series:
        x, y = zip(*one.points.values(), strict=True)
        face = "white" if one.is_hollow else one.color
        axes.plot(
            x,
            y,
            color=one.color,
            linestyle=one.line or "none",
            marker=one.marker,
            markerfacecolor=face,
            label=one.name,
        )
        if one.label_at is not None:
            _write_labels(axes, one, one.label_at)
    if scales[0] == "log":
        axes.set_xscale("log")
        _set_ticks(axes.xaxis)
    if scales[1] == "log":
        axes.set_yscale("log")
        _set_ticks(axes.yaxis)
    _finish(axes, title, x_label, y_label)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _write_labels(axes: Axes, series: Series, at: tuple[float, float]) -> None:
    """Write labels beside their points: right of them, left, above or below, as `at` says."""
    across = "left" if at[0] > 0 else "right" if at[0] < 0 else "center"
    up = "bottom" if at[1] > 0 else "top" if at[1] < 0 else "center"
    for label, point in series.points.items():
        axes.annotate(label, point, at, textcoords="offset points", ha=across, va=up, fontsize=7.5, color=series.color)


def _set_ticks(axis: Axis) -> None:
    """Put the ticks of a logarithmic axis at 10, 20, 50, 100 and so on."""
    ticker = require("matplotlib.ticker", "report")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, color="#dde2e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
