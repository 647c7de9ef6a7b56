"""A feature network drawn as SVG: levels as rows, order of computation as columns, learned weights as edge width."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from efficientdet.network.fusion import Fusion
from efficientdet.network.pyramid import FeatureNetwork, NodeModule
from efficientdet.network.topology import Topology

COLUMN, ROW, MARGIN, RADIUS = 120, 78, 56, 17
# Where a node reads more than three maps, the numbers on its edges need room beside each other.
MANY_INPUTS, WIDE_COLUMN = 4, 420
# One color a level, fine to coarse.
COLORS = ("#2f6fb7", "#2a9d8f", "#8ab17d", "#e9a23b", "#d1603d", "#8d5a97")
EDGE = "#8a94a3"


def draw_topology(topology: Topology, weights: Mapping[tuple[str, int], float] | None = None) -> str:
    """Draw one cell.

    Args:
        topology: the cell.
        weights: share of each edge, by (node, number of the input), 0 to 1: the edge's width, written beside it.

    Returns:
        An SVG document.
    """
    low, high = topology.levels
    columns = _columns(topology)
    outputs = set(topology.outputs())
    places = {f"in{level}": (0, level) for level in range(low, high + 1)}
    places |= {node.name: (columns[node.name], node.level) for node in topology.nodes}
    is_crowded = weights is not None and any(len(node.inputs) >= MANY_INPUTS for node in topology.nodes)
    step = WIDE_COLUMN if is_crowded else COLUMN
    width = 2 * MARGIN + step * max(columns.values()) + COLUMN
    height = 2 * MARGIN + ROW * (high - low) + 30

    def at(name: str) -> tuple[float, float]:
        column, level = places[name]
        return MARGIN + 30 + step * column, MARGIN + 24 + ROW * (high - level)

    parts = [
        f'<text x="{MARGIN}" y="30" font-size="17" font-weight="600" fill="#222">{escape(topology.name)}</text>',
        *(
            f'<text x="14" y="{MARGIN + 29 + ROW * (high - level)}" font-size="13" fill="#667">P{level}</text>'
            for level in range(low, high + 1)
        ),
    ]
    labels = []
    for node in topology.nodes:
        for number, name in enumerate(node.inputs):
            share = None if weights is None else weights.get((node.name, number))
            span = columns[node.name] - places[name][0]
            along = 0.4 + 0.45 * number / (len(node.inputs) - 1) if is_crowded and len(node.inputs) > 1 else 0.62
            path, label = _edge(at(name), at(node.name), span, share, along)
            parts.append(path)
            labels.append(label)
    parts += labels  # no line crosses a number
    for name, (_, level) in places.items():
        parts.append(_circle(at(name), name, COLORS[(level - low) % len(COLORS)], name in outputs))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _columns(topology: Topology) -> dict[str, int]:
    """The column of each node: right of all that it reads, and right of what stands on its row already."""
    low, high = topology.levels
    columns = {f"in{level}": 0 for level in range(low, high + 1)}
    last = dict.fromkeys(range(low, high + 1), 0)
    for node in topology.nodes:
        column = 1 + max(columns[name] for name in node.inputs)
        columns[node.name] = last[node.level] = max(column, last[node.level] + 1)
    return columns


def _edge(
    start: tuple[float, float], end: tuple[float, float], span: int, share: float | None, along: float
) -> tuple[str, str]:
    """The line over some columns, and, part of the way along it, its number or nothing."""
    thickness = 1.6 if share is None else 0.6 + 7 * share
    middle = (start[0] + end[0]) / 2
    bend = -32 - 6.4 * span if start[1] == end[1] and span > 1 else 0  # around what stands between
    path = f"M {start[0]} {start[1]} C {middle} {start[1] + bend}, {middle} {end[1] + bend}, {end[0]} {end[1]}"
    label = ""
    if share is not None:
        rise, bulge = along * along * (3 - 2 * along), 3 * along * (1 - along)  # of the curve, a cubic
        x = start[0] + (end[0] - start[0]) * (bulge / 2 + along**3) - 11
        y = start[1] + (end[1] - start[1]) * rise + bend * bulge + 4
        halo = 'stroke="#fff" stroke-width="3" paint-order="stroke"'
        label = f'<text x="{x:.0f}" y="{y:.0f}" font-size="11" fill="#334" {halo}>{share:.2f}</text>'
    return f'<path d="{path}" fill="none" stroke="{EDGE}" stroke-width="{thickness:.2f}" opacity="0.8"/>', label


def _circle(center: tuple[float, float], name: str, color: str, is_output: bool) -> str:
    x, y = center
    ring = ' stroke="#222" stroke-width="2"' if is_output else ""
    return (
        f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{color}"{ring}/>'
        f'<text x="{x}" y="{y + 4}" font-size="11" fill="#fff" text-anchor="middle">{escape(name)}</text>'
    )


def learned_weights(network: FeatureNetwork, cell: int) -> dict[tuple[str, int], float]:
    """Share of each edge in its node's fusion, by (node, number of the input), in one cell of a trained network.

    Vectors over channels are averaged. A node without weights gives each of its inputs the same share.
    """
    shares: dict[tuple[str, int], float] = {}
    for name, module in network.cells[cell].named_children():
        if not isinstance(module, NodeModule) or not isinstance(module.fuse, Fusion):
            continue
        count = len(module.node.inputs)
        found = input_shares(module.fuse)
        if found is None or len(found) != count:
            found = [1 / count] * count
        shares |= {(name, number): share for number, share in enumerate(found)}
    return shares


def input_shares(fuse: Fusion) -> list[float] | None:
    """Share of each weight among a node's, its vectors over channels averaged; None for a plain sum."""
    weights = fuse.normalized_weights()
    if weights is None:
        return None
    sizes = weights.detach().abs().reshape(len(weights), -1).mean(1)
    total = float(sizes.sum()) or 1.0
    return [float(size) / total for size in sizes]
