"""Figures of what `explain` finds: fusion weights as a heat map, and a detection with what carried it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efficientdet.errors import require
from efficientdet.research.draw_topology import COLORS, draw_topology
from efficientdet.research.explanation import Explanation
from efficientdet.research.figures import new_figure
from efficientdet.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_PER_ROW = 4
INK, SOFT = "#222831", "#667085"
BOX, ANCHOR, CELL = "#dc144c", "#ffb000", "#00c2a8"
# Fewer bars than this are no thicker.
FEWEST_BARS = 4
# The image is cropped to box, anchor and cell with this many times their size around them.
SURROUNDINGS = 1.5


def draw_fusion(rows: Sequence[Mapping[str, Any]], title: str, fusion: str) -> Figure:
    """A heat map of fusion weights: a panel for each cell, a row for each node, a column for each input.

    Args:
        rows: rows of `fusion_rows`.
        title: title of the figure.
        fusion: kind of the fusion, for the caption.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    cells = sorted({row["cell"] for row in rows})
    nodes = list(dict.fromkeys(row["node"] for row in rows))
    columns = max(sum(row["node"] == node and row["cell"] == cells[0] for row in rows) for node in nodes)
    across = min(len(cells), PANELS_PER_ROW)
    down = -(-len(cells) // across)
    longest = max(len(row["input"]) for row in rows)
    width = across * (0.7 + columns * max(0.75, 0.085 * longest)) + 0.3
    figure = new_figure(max(width, 6.5), down * (0.6 + 0.45 * len(nodes)) + 1.0)
    figure.suptitle(_plain(title, 100), x=0.01, ha="left", fontsize=13, color=INK)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel in panels[len(cells) :]:
        panel.set_visible(False)
    for panel, cell in zip(panels, cells, strict=False):
        _draw_cell(panel, [row for row in rows if row["cell"] == cell], nodes, columns)
        panel.set_title(f"cell {cell}", fontsize=11, color=INK)
    figure.supxlabel(_caption(rows, fusion), x=0.01, ha="left", fontsize=8.5, color=SOFT)
    return figure


def _caption(rows: Sequence[Mapping[str, Any]], fusion: str) -> str:
    lines = [f"fusion '{fusion}'; share: |weight| over the node's sum, a mean where each channel has its own weight"]
    if any(row["weight"] < 0 for row in rows):
        lines.append("- before a share: the weight is negative")
    if any("&" in row["input"] for row in rows):
        lines.append("a & b: pooled by global attention, with one weight")
    if not all(row["is_learned"] for row in rows):
        lines.append("gray: a plain sum, without weights")
    return "\n".join(lines)


def _draw_cell(panel: Axes, rows: Sequence[Mapping[str, Any]], nodes: list[str], columns: int) -> None:
    panel.set_xlim(-0.5, columns - 0.5)
    panel.set_ylim(len(nodes) - 0.5, -0.5)
    panel.set_yticks(range(len(nodes)), map(_plain, nodes), fontsize=9)
    _clear(panel)
    rectangle = require("matplotlib.patches", "report").Rectangle
    shades = require("matplotlib", "report").colormaps["Blues"]
    for y, node in enumerate(nodes):
        for x, row in enumerate(row for row in rows if row["node"] == node):
            share = row["share"]
            color = shades(0.08 + 0.87 * share) if row["is_learned"] else "#eceef1"
            panel.add_patch(rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=2))
            ink = "white" if row["is_learned"] and share > 0.6 else INK
            sign = "-" if row["weight"] < 0 else ""
            panel.text(x, y - 0.04, f"{sign}{share:.2f}", ha="center", va="bottom", fontsize=9.5, color=ink)
            panel.text(x, y + 0.06, _plain(row["input"]), ha="center", va="top", fontsize=7.5, color=ink)


def _clear(panel: Axes) -> None:
    """No x axis, no frame, no tick marks."""
    panel.set_xticks([])
    panel.tick_params(length=0, colors=INK)
    panel.spines[:].set_visible(False)


def draw_cells(explanation: Explanation) -> list[str]:
    """An SVG document for each cell: each edge as wide as its share of its node's contributions."""
    drawings = []
    for cell in range(1 + max(edge.cell for edge in explanation.edges)):
        shares = {(edge.node, edge.number): edge.share for edge in explanation.edges if edge.cell == cell}
        name = f"{explanation.topology.name}, cell {cell}"
        drawings.append(draw_topology(dataclasses.replace(explanation.topology, name=name), shares))
    return drawings


def draw_explanation(explanation: Explanation) -> Figure:
    """The detection with its anchor and cell on the image; beside it classes, levels and the strongest path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(12, 6.8)
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1), height_ratios=(1, 1, 1.3))
    _draw_image(figure.add_subplot(grid[:, 0]), explanation)
    names, probabilities = zip(*explanation.classes, strict=True)
    colors = [BOX if name == explanation.class_name else "#98a2b3" for name in names]
    shown = [_plain(name) for name in names]
    _bars(figure.add_subplot(grid[0, 1]), shown, probabilities, colors, "classes at this anchor: probability", 1.0)
    low = explanation.topology.levels[0]
    levels = [f"P{level}" for level in explanation.levels]
    colors = [COLORS[(level - low) % len(COLORS)] for level in explanation.levels]
    parts = [part for part, _ in explanation.levels.values()]
    _bars(figure.add_subplot(grid[1, 1]), levels, parts, colors, "contribution of the backbone's features")
    steps = [f"cell {edge.cell}: {edge.input} → {edge.node}" for edge in explanation.path]
    node_levels = {node.name: node.level for node in explanation.topology.nodes}
    colors = [COLORS[(node_levels[edge.node] - low) % len(COLORS)] for edge in explanation.path]
    title = f"strongest path ({explanation.path_share:.1%} of all): share at each node"
    _bars(figure.add_subplot(grid[2, 1]), steps, [edge.share for edge in explanation.path], colors, title, 1.0)
    note = f"contribution: gradient x activation of the class logit ({explanation.logit:.2f}); need not add up to it"
    figure.supxlabel(note, x=0.99, ha="right", fontsize=8.5, color=SOFT)
    return figure


def _plain(text: str, longest: int = 24) -> str:
    """Text from outside, cut in the middle where it is long, in which `$` begins no formula of matplotlib's."""
    return printable(text, longest).replace("$", r"\$")


def _bars(
    panel: Axes, names: Sequence[str], values: Sequence[float], colors: list[str], title: str, full: float = 0.0
) -> None:
    """Horizontal bars with their numbers; the scale reaches `full` at least."""
    panel.barh(range(len(names)), values, color=colors, height=0.72)
    panel.set_ylim(max(len(names), FEWEST_BARS) - 0.5, -0.5)
    panel.set_yticks(range(len(names)), names, fontsize=9)
    low, high = min(0.0, *values), max(full, *values)
    room = 0.2 * ((high - low) or 1.0)  # for the numbers
    panel.set_xlim(low - (room if low < 0 else 0), high + room)
    for y, value in enumerate(values):
        number, side = f"{value:.2f}" if full else f"{value:.2g}", "left" if value >= 0 else "right"
        panel.text(value, y, f" {number} ", ha=side, va="center", fontsize=8.5, color=INK)
    panel.axvline(0, color=SOFT, linewidth=0.8)
    _clear(panel)
    panel.set_title(title, loc="left", fontsize=10, color=INK)


def _draw_image(panel: Axes, explanation: Explanation) -> None:
    anchor, name = explanation.anchor, _plain(explanation.class_name)
    panel.imshow(explanation.image)
    rectangle = require("matplotlib.patches", "report").Rectangle
    shapes: tuple[tuple[tuple[float, ...], str, dict[str, Any]], ...] = (
        (
            anchor.cell_xyxy,
            f"cell: row {anchor.row}, column {anchor.column}",
            {"edgecolor": CELL, "facecolor": CELL + "66", "linewidth": 1},
        ),
        (explanation.box_xyxy, f"predicted box: {name}", {"edgecolor": BOX, "facecolor": "none", "linewidth": 2.4}),
        (
            anchor.box_xyxy,
            f"anchor: IoU {explanation.anchor_iou:.2f} with the box",
            {"edgecolor": ANCHOR, "facecolor": "none", "linewidth": 2.4, "linestyle": "--"},
        ),
    )
    for (left, top, right, bottom), label, style in shapes:
        panel.add_patch(rectangle((left, top), right - left, bottom - top, label=label, **style))
    left, top, right, bottom = _view([box for box, _, _ in shapes], explanation.image.shape)
    panel.set_xlim(left, right)
    panel.set_ylim(bottom, top)
    panel.set_anchor("NW")
    panel.set_axis_off()
    octave = f"octave {anchor.octave}, aspect {anchor.aspect[0]:g} x {anchor.aspect[1]:g}"
    title = f"{name} {explanation.score:.2f} from level P{anchor.level}, {octave}"
    panel.set_title(title, loc="left", fontsize=11, color=INK)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.01), ncols=2, frameon=False, fontsize=9, borderaxespad=0)


def _view(boxes: Sequence[tuple[float, ...]], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is shown of an image: some boxes and their surroundings."""
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
    around = SURROUNDINGS * max(right - left, bottom - top)
    height, width = shape[:2]
    return (
        min(left - 2, max(0.0, left - around)),
        min(top - 2, max(0.0, top - around)),
        max(right + 2, min(float(width), right + around)),
        max(bottom + 2, min(float(height), bottom + around)),
    )
