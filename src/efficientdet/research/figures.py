"""Figures of matplotlib, drawn without its global state, written whole or not at all; and feature networks drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.atomic_write import replacing
from efficientdet.errors import SettingError, require
from efficientdet.network.topology import Topology
from efficientdet.research.edges import Edge
from efficientdet.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


# Inches. Where a node has many inputs, wider columns leave room for the numbers on its edges.
COLUMN, ROW, MANY_INPUTS, WIDE_COLUMN = 1.15, 0.8, 4, 4.2
# Colors of the levels, finest first.
COLORS = (BLUE, TEAL, "#8ab17d", ORANGE, RED, VIOLET)
# Places along an edge, 0 to 1, at which its curve is computed.
ALONG = np.linspace(0, 1, 41)[:, None]


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
    """Draw series of labeled points, each with at least one."""
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


def draw_topology(topology: Topology, edges: Sequence[Edge] = ()) -> Figure:
    """Draw the cells of a feature network, one below the other.

    Args:
        topology: the cell.
        edges: edges of one or more cells, each drawn as wide as its share, which is written on it, with a minus where
            its value is negative. Edges that are not among them are thin; without any, one cell is drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns, levels = _columns(topology), topology.levels[1] - topology.levels[0] + 1
    is_crowded = bool(edges) and any(len(node.inputs) >= MANY_INPUTS for node in topology.nodes)
    cells = sorted({edge.cell for edge in edges}) or [0]
    width = 1.2 + max(columns.values()) * (WIDE_COLUMN if is_crowded else COLUMN)
    figure = new_figure(width, len(cells) * (ROW * levels + 0.6))
    for panel, cell in zip(figure.subplots(len(cells), squeeze=False).flatten(), cells, strict=True):
        own = {(edge.node, edge.input): edge for edge in edges if edge.cell == cell}
        _draw_cell(panel, topology, columns, own, is_crowded)
        title = plain(topology.name, 60) + (f", cell {cell}" if edges else "")
        panel.set_title(title, loc="left", fontsize=11, fontweight="bold")
    return figure


def _draw_cell(
    panel: Axes,
    topology: Topology,
    columns: Mapping[str, int],
    edges: Mapping[tuple[str, str], Edge],
    is_crowded: bool,
) -> None:
    low, high = topology.levels
    levels = {f"in{level}": level for level in range(low, high + 1)}
    levels |= {node.name: node.level for node in topology.nodes}
    at = {name: np.array([columns[name], level], float) for name, level in levels.items()}
    outputs = topology.outputs()
    for node in topology.nodes:
        for place, name in enumerate(node.inputs):
            start, end = at[name], at[node.name]
            middle = (start + end) / 2 + [0, _bend(start, end, np.array(list(at.values())))]
            curve = (1 - ALONG) ** 2 * start + 2 * ALONG * (1 - ALONG) * middle + ALONG**2 * end
            edge = edges.get((node.name, name))
            width = 1.0 if edge is None else 0.5 + 5.5 * edge.share
            panel.plot(*curve.T, color=GRAY, alpha=0.7, linewidth=width, zorder=1)
            if edge is not None:
                along = 0.4 + 0.45 * place / (len(node.inputs) - 1) if is_crowded and len(node.inputs) > 1 else 0.62
                number = f"{'-' if edge.value < 0 else ''}{edge.share:.2f}"
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
                x, y = curve[round(along * 40)]
                panel.text(x, y, number, fontsize=7.5, ha="center", va="center", bbox=box)
    for name, level in levels.items():
        ring = "black" if name in outputs else "none"
        color = COLORS[(level - low) % len(COLORS)]
        panel.scatter(columns[name], level, s=560, color=color, edgecolors=ring, linewidths=1.5, zorder=3)
        panel.text(columns[name], level, plain(name, 9), fontsize=8, color="white", ha="center", va="center", zorder=4)
    panel.set_yticks(range(low, high + 1), [f"P{level}" for level in range(low, high + 1)])
    top = max(high + 0.5, panel.dataLim.y1 + 0.1)
    panel.set(xticks=[], xlim=(-0.5, max(columns.values()) + 0.5), ylim=(low - 0.5, top))
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def _bend(start: NDArray[Any], end: NDArray[Any], places: NDArray[Any]) -> float:
    """How far an edge's middle is moved upwards, to go around the nodes on its straight line."""
    line = end - start
    along = (places - start) @ line / (line @ line)  # 0 at the start, 1 at the end
    is_near = np.abs(places - start - along[:, None] * line).max(1) < 0.3
    return 0.55 + 0.15 * float(line[0]) if (is_near & (along > 0.01) & (along < 0.99)).any() else 0.0


def _columns(topology: Topology) -> dict[str, int]:
    """The column of each node: to the right of its inputs, and of the earlier nodes of its level."""
    levels = range(topology.levels[0], topology.levels[1] + 1)
    columns = {f"in{level}": 0 for level in levels}
    last = dict.fromkeys(levels, 0)
    for node in topology.nodes:
        column = 1 + max(columns[name] for name in node.inputs)
        columns[node.name] = last[node.level] = max(column, last[node.level] + 1)
    return columns
