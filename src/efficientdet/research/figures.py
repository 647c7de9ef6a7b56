"""Figures of matplotlib, drawn without its global state, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from efficientdet.atomic_write import replacing
from efficientdet.errors import SettingError, require
from efficientdet.text import printable

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, TEAL, ORANGE, RED, VIOLET, GRAY = "#2f6fb7", "#2a9d8f", "#e9a23b", "#d1603d", "#8d5a97", "#667080"
DOTS_PER_INCH = 130
# Places of labels beside their markers, in points.
RIGHT: dict[str, Any] = {"xytext": (9, 0), "ha": "left", "va": "center"}
LEFT: dict[str, Any] = {"xytext": (-9, 0), "ha": "right", "va": "center"}
UPPER_LEFT: dict[str, Any] = {"xytext": (-7, 6), "ha": "right", "va": "bottom"}
LOWER_RIGHT: dict[str, Any] = {"xytext": (9, -6), "ha": "left", "va": "top"}

Scale = Literal["linear", "log"]


class Series(NamedTuple):
    """Points that belong together.

    Attributes:
        name: its name in the legend.
        points: (x, y) by label.
        style: matplotlib's format of markers and line: `o-`, `s` for markers alone, `--` for a line alone.
        color: color of line, markers and labels.
        label_at: place of the labels, such as `RIGHT`; None for no labels.
    """

    name: str
    points: Mapping[str, tuple[float, float]]
    style: str
    color: str
    label_at: Mapping[str, Any] | None = RIGHT


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure: Figure = require("matplotlib.figure", "report").Figure(figsize=(width, height), layout="constrained")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, such as `.png`, or as SVG, whose text stays text.

    Raises:
        SettingError: there is no such format, or it cannot hold an image of this size.
    """
    kind = path.suffix[1:].lower() or "svg"
    settings = {"svg.fonttype": "none", "svg.hashsalt": path.name}
    try:
        with require("matplotlib", "report").rc_context(settings), replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=DOTS_PER_INCH, metadata={"Date": None} if kind == "svg" else {})
    except ValueError as error:
        raise SettingError(f"{path}: cannot be drawn ({error})") from error


def plain(text: str, longest: int = 24) -> str:
    """Text from outside, cut in the middle where it is long, in which `$` begins no formula of matplotlib's."""
    return printable(text, longest).replace("$", r"\$")


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
        axes.plot(*zip(*one.points.values(), strict=True), one.style, color=one.color, label=one.name)
        if one.label_at is not None:
            for label, point in one.points.items():
                axes.annotate(label, point, textcoords="offset points", fontsize=7.5, color=one.color, **one.label_at)
    axes.set(xlabel=x_label, ylabel=y_label, xscale=scales[0], yscale=scales[1])
    for axis, scale in zip((axes.xaxis, axes.yaxis), scales, strict=True):
        if scale == "log":
            _set_ticks(axis)
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left")
    axes.grid(True, color="#dde2e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _set_ticks(axis: Axis) -> None:
    """Put the ticks of a logarithmic axis at 10, 20, 50, 100 and so on."""
    ticker = require("matplotlib.ticker", "report")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())
