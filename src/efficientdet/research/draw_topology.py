"""A feature network drawn as SVG: levels are rows, the order of computation columns, shares the width of edges."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from efficientdet.network.topology import Topology
from efficientdet.text import printable

COLUMN, ROW, MARGIN, RADIUS = 120, 78, 56, 17
# Where a node has many inputs, wider columns leave room for the numbers on its edges.
MANY_INPUTS, WIDE_COLUMN = 4, 420
# One color for each level, finest first.
COLORS = ("#2f6fb7", "#2a9d8f", "#8ab17d", "#e9a23b", "#d1603d", "#8d5a97")

Point = tuple[float, float]


def draw_topology(topology: Topology, shares: Mapping[tuple[str, int], float] | None = None) -> str:
    """Draw one cell.

    Args:
        topology: the cell.
        shares: share of each edge at its node, 0 to 1, by (node, number of the input): drawn as the edge's width and
            written beside it. None draws all edges alike.

    Returns:
        An SVG document.
    """
    low, high = topology.levels
    columns, outputs = _columns(topology), topology.outputs()
    levels = {f"in{level}": level for level in range(low, high + 1)}
    levels |= {node.name: node.level for node in topology.nodes}
    is_crowded = shares is not None and any(len(node.inputs) >= MANY_INPUTS for node in topology.nodes)
    step = WIDE_COLUMN if is_crowded else COLUMN
    rows = {level: MARGIN + 24 + ROW * (high - level) for level in range(low, high + 1)}
    at = {name: (MARGIN + 30.0 + step * columns[name], float(rows[level])) for name, level in levels.items()}
    lines, numbers = [], []
    for node in topology.nodes:
        for place, name in enumerate(node.inputs):
            bend = _bend(at[name], at[node.name], columns[node.name] - columns[name])
            share = None if shares is None else shares[node.name, place]
            lines.append(_line(at[name], at[node.name], bend, share))
            if share is not None:
                along = 0.4 + 0.45 * place / (len(node.inputs) - 1) if is_crowded and len(node.inputs) > 1 else 0.62
                numbers.append(_number(at[name], at[node.name], bend, share, along))
    title = escape(printable(topology.name))
    parts = [
        f'<text x="{MARGIN}" y="30" font-size="17" font-weight="600" fill="#222">{title}</text>',
        *(f'<text x="14" y="{y + 5}" font-size="13" fill="#667">P{level}</text>' for level, y in rows.items()),
        *lines,
        *numbers,  # above the lines
        *(
            _circle(at[name], name, COLORS[(level - low) % len(COLORS)], name in outputs)
            for name, level in levels.items()
        ),
    ]
    width, height = 2 * MARGIN + 30 + step * max(columns.values()), 2 * MARGIN + ROW * (high - low) + 30
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">',
            '<rect width="100%" height="100%" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _columns(topology: Topology) -> dict[str, int]:
    """The column of each node: to the right of its inputs, and of the earlier nodes of its level."""
    low, high = topology.levels
    columns = {f"in{level}": 0 for level in range(low, high + 1)}
    last = dict.fromkeys(range(low, high + 1), 0)
    for node in topology.nodes:
        column = 1 + max(columns[name] for name in node.inputs)
        columns[node.name] = last[node.level] = max(column, last[node.level] + 1)
    return columns


def _bend(start: Point, end: Point, columns: int) -> float:
    """How far an edge within a row is bent upwards, around the nodes that it passes."""
    return -32 - 6.4 * columns if start[1] == end[1] and columns > 1 else 0


def _line(start: Point, end: Point, bend: float, share: float | None) -> str:
    (x0, y0), (x1, y1), middle = start, end, (start[0] + end[0]) / 2
    width = 1.6 if share is None else 0.6 + 7 * share
    path = f"M {x0} {y0} C {middle} {y0 + bend}, {middle} {y1 + bend}, {x1} {y1}"
    return f'<path d="{path}" fill="none" stroke="#8a94a3" stroke-width="{width:.2f}" opacity="0.8"/>'


def _number(start: Point, end: Point, bend: float, share: float, along: float) -> str:
    """A share, written on its line's Bezier curve at the parameter `along`, 0 to 1."""
    rise, bulge = along * along * (3 - 2 * along), 3 * along * (1 - along)
    x = start[0] + (end[0] - start[0]) * (bulge / 2 + along**3)
    y = start[1] + (end[1] - start[1]) * rise + bend * bulge
    return (
        f'<rect x="{x - 12:.0f}" y="{y - 6:.0f}" width="24" height="12" fill="#fff" opacity="0.85"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" font-size="11" fill="#334" text-anchor="middle">{share:.2f}</text>'
    )


def _circle(center: Point, name: str, color: str, is_output: bool) -> str:
    x, y = center
    ring = ' stroke="#222" stroke-width="2"' if is_output else ""
    return (
        f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{color}"{ring}/>'
        f'<text x="{x}" y="{y + 4}" font-size="11" fill="#fff" text-anchor="middle">{escape(name)}</text>'
    )
