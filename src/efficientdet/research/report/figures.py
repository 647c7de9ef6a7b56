"""The report's pictures. The only module here that knows matplotlib; its global state is left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientdet.atomic_write import replacing
from efficientdet.errors import require
from efficientdet.research.scaling import PowerFit

BLUE, TEAL, ORANGE, RED, VIOLET, GREY = "#2f6fb7", "#2a9d8f", "#e9a23b", "#d1603d", "#8d5a97", "#667080"
MARKERS = ("s", "^", "D", "v", "P", "X")
DOTS_PER_INCH = 130


@dataclass(frozen=True)
class Series:
    """Points that belong together: a line where they are connected, else markers of one kind.

    Attributes:
        name: for the legend.
        points: label -> (x, y).
        color: of line and markers.
        marker: matplotlib's name of it.
        is_line: whether the points are connected in order.
        is_hollow: markers without a filling.
    """

    name: str
    points: Mapping[str, tuple[float, float]]
    color: str
    marker: str = "o"
    is_line: bool = False
    is_hollow: bool = False


def check_matplotlib() -> None:
    """Say at once, before anything is counted or measured, when matplotlib is missing.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    require("matplotlib", "report")


def save(figure: Any, stem: Path) -> None:
    """Write a figure as PNG and as SVG."""
    for suffix in (".png", ".svg"):
        with replacing(stem.with_suffix(suffix)) as temporary:
            metadata = {"Date": None} if suffix == ".svg" else {}
            figure.savefig(temporary, dpi=DOTS_PER_INCH, metadata=metadata, format=suffix[1:])


def labeled_points(
    title: str, x_label: str, y_label: str, series: Sequence[Series], *, is_log: tuple[bool, bool] = (True, False),
    guide: PowerFit | None = None, guide_name: str = "",
) -> Any:  # fmt: skip
    """Draw series of points, each with its label beside it where no other label or point stands.

    Args:
        title: above the picture.
        x_label: with its unit.
        y_label: with its unit.
        series: at least one, with at least one point.
        is_log: whether x and y are logarithmic.
        guide: a power law drawn as a dashed line, or None.
        guide_name: its name in the legend.

    Returns:
        A matplotlib figure.
    """
    figure, axes = _figure(9.0, 5.8)
    ends: list[tuple[float, float]] = []
    for one in series:
        xs, ys = zip(*one.points.values(), strict=True)
        axes.plot(
            xs, ys, color=one.color, marker=one.marker, linestyle="-" if one.is_line else "none", linewidth=1.8,
            markersize=7, markerfacecolor="white" if one.is_hollow else one.color, markeredgewidth=1.6, label=one.name,
        )  # fmt: skip
    if guide is not None:
        every_x = [x for one in series for x, _ in one.points.values()]
        ends = [(x, guide.factor * x**guide.slope) for x in (min(every_x), max(every_x))]
        axes.plot(*zip(*ends, strict=True), color=GREY, linestyle="--", linewidth=1.2, label=guide_name, zorder=1)
    _finish(axes, title, x_label, y_label, is_log)
    _label_points(figure, axes, series, ends)
    return figure


def lines(
    title: str, x_label: str, y_label: str, x: Sequence[float], by_name: Mapping[str, Sequence[float]], *,
    is_log: bool = True,
) -> Any:  # fmt: skip
    """Draw some lines over the same x, each named at its end; returns a matplotlib figure."""
    figure, axes = _figure(8.0, 5.2)
    colors = (BLUE, TEAL, ORANGE, RED, VIOLET, GREY)
    for number, (name, y) in enumerate(by_name.items()):
        axes.plot(x, y, color=colors[number % len(colors)], marker=MARKERS[number % len(MARKERS)], label=name)
    _finish(axes, title, x_label, y_label, (False, is_log))
    axes.set_xticks(list(x))
    return figure


def bars(title: str, x_label: str, values: Mapping[str, tuple[float, float, float]]) -> Any:
    """Draw horizontal bars of (median, least, largest) by name, with the range as a whisker; returns a figure."""
    figure, axes = _figure(7.5, 1.6 + 0.5 * len(values))
    for place, (middle, low, high) in enumerate(values.values()):
        axes.barh(place, middle, color=BLUE, height=0.6)
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color="#222", capsize=4, linewidth=1.2)
        axes.text(high, place, f"  {middle:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(high for _, _, high in values.values()))
    _finish(axes, title, x_label, "", (False, False), has_legend=False)
    axes.grid(visible=False, axis="y")
    return figure


def shares(title: str, cells: Sequence[Mapping[str, Mapping[str, float]]]) -> Any:
    """Draw the share of each input in each node: a column of pictures, one for each cell; returns a figure.

    Args:
        title: above all.
        cells: for each cell, node -> input -> share of 0 to 1.
    """
    columns = min(4, len(cells))
    rows = -(-len(cells) // columns)
    height = 0.36 * max(len(cell) for cell in cells) + 0.7
    figure, _ = _figure(3.4 * columns + 0.6, rows * height + 0.6, has_axes=False)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    # One color for each place among the inputs: the node's own level first, then what comes from above or below.
    for number, cell in enumerate(cells):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(f"cell {number}", fontsize=10)
        for place, inputs in enumerate(cell.values()):
            left = 0.0
            for order, (name, share) in enumerate(inputs.items()):
                axes.barh(place, share, left=left, color=(BLUE, TEAL, ORANGE, RED, VIOLET)[order % 5], height=0.78)
                if share > 0.18:
                    axes.text(
                        left + share / 2, place, f"{name} {share:.2f}", ha="center", va="center", color="white",
                        fontsize=7.5,
                    )  # fmt: skip
                left += share
        axes.set_yticks(range(len(cell)), list(cell), fontsize=8)
        axes.set_xticks([])
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    return figure


def _figure(width: float, height: float, has_axes: bool = True) -> tuple[Any, Any]:
    """A figure of its own, in inches, drawn by Agg whatever backend the process uses."""
    figure = require("matplotlib.figure", "report").Figure(figsize=(width, height), layout="constrained")
    require("matplotlib.backends.backend_agg", "report").FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if has_axes else None


def _finish(
    axes: Any, title: str, x_label: str, y_label: str, is_log: tuple[bool, bool], has_legend: bool = True
) -> None:
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    for axis, name, logarithmic in ((axes.xaxis, "x", is_log[0]), (axes.yaxis, "y", is_log[1])):
        if logarithmic:
            getattr(axes, f"set_{name}scale")("log")
            # 10, 20, 50, 100 rather than powers of ten.
            ticker = require("matplotlib.ticker", "report")
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(True, which="major", color="#dde2e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if has_legend:
        axes.legend(frameon=False, fontsize=9)


# Where a label may stand, in points from its marker: near and to the side first.
_OFFSETS = [
    (radius * x, radius * y)
    for radius in (9, 15, 24, 36, 52)
    for x, y in ((1, 0), (-1, 0), (0, 1.1), (0, -1.1), (0.8, 0.9), (-0.8, 0.9), (0.8, -0.9), (-0.8, -0.9))
]


def _label_points(figure: Any, axes: Any, series: Sequence[Series], guide: Sequence[tuple[float, float]]) -> None:
    """Write each point's label at the first of `_OFFSETS` where it covers no marker, no line and no other label."""
    bbox = require("matplotlib.transforms", "report").Bbox
    figure.canvas.draw()  # settles the layout; from here on positions in pixels hold
    # The layout would move again under the labels that were placed by it.
    figure.set_layout_engine("none")
    taken = [axes.get_legend().get_window_extent()]
    if guide:
        taken += _along(bbox, *axes.transData.transform(guide))
    for one in series:
        pixels = axes.transData.transform(list(one.points.values()))
        taken += [bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in pixels]
        if one.is_line:
            taken += [box for start, end in zip(pixels, pixels[1:], strict=False) for box in _along(bbox, start, end)]
    for one in series:
        for label, point in one.points.items():
            taken.append(_place(axes, label, point, one.color, taken))


def _along(bbox: Any, start: Any, end: Any) -> list[Any]:
    """Small boxes that cover a line between two points in pixels."""
    steps = max(2, int(max(abs(end - start)) / 6))
    places = [start + (end - start) * step / steps for step in range(1, steps)]
    return [bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in places]


def _place(axes: Any, label: str, point: tuple[float, float], color: str, taken: list[Any]) -> Any:
    """Write one label; returns the box in pixels that it covers."""
    text = axes.annotate(label, point, _OFFSETS[0], textcoords="offset points", fontsize=8.5, color=color)
    fewest, best = len(taken) + 2, _OFFSETS[0]
    for offset in _OFFSETS:
        box = _stand(text, offset)
        is_inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
        hits = box.count_overlaps(taken) + (not is_inside)
        if hits < fewest:
            fewest, best = hits, offset
        if hits == 0:
            break
    return _stand(text, best)


def _stand(text: Any, offset: tuple[float, float]) -> Any:
    """Move a label to a place around its point; returns the box in pixels that it covers there."""
    x, y = offset
    text.set_position(offset)
    text.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
    text.set_verticalalignment("bottom" if y > 0 else "top" if y < 0 else "center")
    return text.get_window_extent()
