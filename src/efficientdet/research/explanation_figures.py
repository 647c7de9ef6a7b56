"""Pictures of what `explain` finds: fusion weights as a heat map, and a detection with what carried it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet.atomic_write import replacing
from efficientdet.errors import SettingError, require
from efficientdet.research.draw_topology import COLORS, draw_topology
from efficientdet.research.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
PANELS_A_ROW = 4
INK, SOFT = "#222831", "#667085"
BOX, ANCHOR, CELL = "#dc144c", "#ffb000", "#00c2a8"
# A lone bar is no thicker than one of so many.
FEWEST_BARS = 4
# The picture is cut to the detection with so many of its sides around it.
SURROUNDINGS = 1.5


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, SVG or PDF, as the name's suffix says; whole or not at all.

    Raises:
        SettingError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SettingError(f"'{path}': pictures are written as {', '.join(SUFFIXES)}")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def draw_fusion(rows: Sequence[Mapping[str, Any]], title: str, fusion: str) -> Figure:
    """The heat map of fusion weights: a panel a cell, a row a node, a column for each of its inputs.

    Args:
        rows: of `fusion_rows`.
        title: what the picture is of.
        fusion: kind of the fusion, for the caption.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    cells = sorted({row["cell"] for row in rows})
    nodes = list(dict.fromkeys(row["node"] for row in rows))
    columns = max(sum(row["node"] == node and row["cell"] == cells[0] for row in rows) for node in nodes)
    across = min(len(cells), PANELS_A_ROW)
    down = -(-len(cells) // across)
    longest = max(len(row["input"]) for row in rows)
    width = across * (0.7 + columns * max(0.75, 0.085 * longest)) + 0.3
    figure: Figure = require("matplotlib.figure", "report").Figure(
        figsize=(max(width, 6.5), down * (0.6 + 0.45 * len(nodes)) + 1.0), layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel in panels[len(cells) :]:
        panel.set_visible(False)
    for panel, cell in zip(panels, cells, strict=False):
        _draw_cell(panel, [row for row in rows if row["cell"] == cell], nodes, columns)
        panel.set_title(f"cell {cell}", fontsize=11, color=INK)
    figure.supxlabel(_caption(rows, fusion), x=0.01, ha="left", fontsize=8.5, color=SOFT)
    return figure


def _caption(rows: Sequence[Mapping[str, Any]], fusion: str) -> str:
    lines = [f"fusion '{fusion}'; share = |weight| / sum over the node; a mean where each channel has its own weight"]
    if any(row["weight"] < 0 for row in rows):
        lines.append("- before a share: the weight is negative")
    if any("&" in row["input"] for row in rows):
        lines.append("a & b: pooled by global attention, which the picture decides; they share one weight")
    if not all(row["is_learned"] for row in rows):
        lines.append("gray: a plain sum, nothing learned, equal by construction")
    return "\n".join(lines)


def _draw_cell(panel: Axes, rows: Sequence[Mapping[str, Any]], nodes: list[str], columns: int) -> None:
    panel.set_xlim(-0.5, columns - 0.5)
    panel.set_ylim(len(nodes) - 0.5, -0.5)
    panel.set_yticks(range(len(nodes)), nodes, fontsize=9)
    panel.set_xticks([])
    panel.tick_params(length=0, colors=INK)
    panel.spines[:].set_visible(False)
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
            panel.text(x, y + 0.06, row["input"], ha="center", va="top", fontsize=7.5, color=ink)


def draw_cells(explanation: Explanation) -> list[str]:
    """One SVG document a cell: the feature network with each edge as wide as its share of its node's contributions."""
    drawings = []
    for cell in range(1 + max(edge.cell for edge in explanation.edges)):
        shares = {(edge.node, edge.number): edge.share for edge in explanation.edges if edge.cell == cell}
        name = f"{explanation.topology.name}, cell {cell}"
        drawings.append(draw_topology(dataclasses.replace(explanation.topology, name=name), shares))
    return drawings


def draw_explanation(explanation: Explanation) -> Figure:
    """The detection on its picture with its anchor and cell; beside it classes, levels and the strongest path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure: Figure = require("matplotlib.figure", "report").Figure(figsize=(12, 6.8), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1), height_ratios=(1, 1, 1.3))
    _draw_picture(figure.add_subplot(grid[:, 0]), explanation)
    names = [_short(name) for name, _ in explanation.classes]
    probabilities = [probability for _, probability in explanation.classes]
    colors = [BOX if name == explanation.class_name else "#98a2b3" for name, _ in explanation.classes]
    _bars(figure.add_subplot(grid[0, 1]), names, probabilities, colors, "classes at this anchor: probability", 1.0)
    levels = [f"P{level}" for level in explanation.levels]
    parts = [part for part, _ in explanation.levels.values()]
    colors = [COLORS[number % len(COLORS)] for number in range(len(levels))]
    title = "contribution of the backbone's features"
    _bars(figure.add_subplot(grid[1, 1]), levels, parts, colors, title)
    steps = [f"cell {edge.cell}: {edge.input} → {edge.node}" for edge in explanation.path]
    low = explanation.topology.levels[0]
    node_levels = {node.name: node.level for node in explanation.topology.nodes}
    colors = [COLORS[(node_levels[edge.node] - low) % len(COLORS)] for edge in explanation.path]
    title = f"strongest path ({explanation.path_share:.1%} of all): share at each node"
    _bars(figure.add_subplot(grid[2, 1]), steps, [edge.share for edge in explanation.path], colors, title, 1.0)
    note = "contribution: gradient x activation of the class logit, to first order; need not add up to the logit"
    figure.supxlabel(f"{note} ({explanation.logit:.2f})", x=0.99, ha="right", fontsize=8.5, color=SOFT)
    return figure


def _short(name: str) -> str:
    """A class name that leaves room; its end is kept, by which names that begin alike differ."""
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"


def _bars(panel: Axes, names: list[str], values: list[float], colors: list[str], title: str, full: float = 0.0) -> None:
    """Horizontal bars with their numbers; the scale reaches `full` at least."""
    panel.barh(range(len(names)), values, color=colors, height=0.72)
    panel.set_ylim(-0.5, max(len(names), FEWEST_BARS) - 0.5)
    panel.set_yticks(range(len(names)), names, fontsize=9)
    panel.invert_yaxis()
    low, high = min(0.0, *values), max(full, *values)
    room = 0.2 * ((high - low) or 1.0)  # for the numbers
    panel.set_xlim(low - (room if low < 0 else 0), high + room)
    for y, value in enumerate(values):
        number, side = f"{value:.2f}" if full else f"{value:.2g}", "left" if value >= 0 else "right"
        panel.text(value, y, f" {number} ", ha=side, va="center", fontsize=8.5, color=INK)
    panel.axvline(0, color=SOFT, linewidth=0.8)
    panel.set_xticks([])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_title(title, loc="left", fontsize=10, color=INK)


def _draw_picture(panel: Axes, explanation: Explanation) -> None:
    anchor, name = explanation.anchor, _short(explanation.class_name)
    panel.imshow(explanation.image)
    rectangle = require("matplotlib.patches", "report").Rectangle
    shapes = (
        (anchor.cell_xyxy, CELL, "-", f"cell: row {anchor.row}, column {anchor.column}"),
        (explanation.box_xyxy, BOX, "-", f"predicted box: {name}"),
        (anchor.box_xyxy, ANCHOR, "--", f"anchor: IoU {explanation.anchor_iou:.2f} with the box"),
    )
    for (left, top, right, bottom), color, style, label in shapes:
        face = CELL + "66" if color == CELL else "none"
        panel.add_patch(
            rectangle(
                (left, top),
                right - left,
                bottom - top,
                facecolor=face,
                edgecolor=color,
                linestyle=style,
                linewidth=1 if color == CELL else 2.4,
                label=label,
            )  # fmt: skip
        )
    left, top, right, bottom = _view(explanation)
    panel.set_xlim(left, right)
    panel.set_ylim(bottom, top)
    panel.set_anchor("NW")
    panel.set_axis_off()
    octave = f"octave {anchor.octave}, aspect {anchor.aspect[0]:g} x {anchor.aspect[1]:g}"
    title = f"{name} {explanation.score:.2f} from level P{anchor.level}, {octave}"
    panel.set_title(title, loc="left", fontsize=11, color=INK)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.01), ncols=2, frameon=False, fontsize=9, borderaxespad=0)


def _view(explanation: Explanation) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is shown: box, anchor and cell with their surroundings in the picture."""
    boxes = (explanation.box_xyxy, explanation.anchor.box_xyxy, explanation.anchor.cell_xyxy)
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
    around = SURROUNDINGS * max(right - left, bottom - top)
    height, width = explanation.image.shape[:2]
    return (
        min(left - 2, max(0.0, left - around)), min(top - 2, max(0.0, top - around)),
        max(right + 2, min(float(width), right + around)), max(bottom + 2, min(float(height), bottom + around)),
    )  # fmt: skip
