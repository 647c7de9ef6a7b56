"""The feature networks that the paper compares, as lists of nodes (section 3, figures 2 and 3). No torch here.

A cell maps the levels in3 ... in7 to fused maps of the same levels. Each node has a level and the names of its inputs:
inputs of the cell (`in5`) or earlier nodes (`td6`), which are first resized to the node's level. The cell's output at a
level is the node called `out<level>`, or else the last node of that level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from efficientdet.errors import SettingError, find_name
from efficientdet.family import ModelSpec
from efficientdet.settings import Settings

Combine = Literal["sum", "attention"]


@dataclass(frozen=True)
class Node(Settings):
    """One node of a cell.

    Attributes:
        name: unique within the cell.
        level: pyramid level of the node's map.
        inputs: names of its inputs, in the order of its fusion weights.
        combine: `sum` adds the inputs with the fusion's weights; `attention` first replaces the last two, x and y, by
            NAS-FPN's global pooling of them: y + sigmoid(mean(x)) * x.
    """

    name: str
    level: int
    inputs: tuple[str, ...]
    combine: Combine = "sum"


@dataclass(frozen=True)
class Topology:
    """A feature network's cell: its nodes, in an order in which inputs come before the nodes that read them."""

    name: str
    levels: tuple[int, int]
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        """Check that the graph can run.

        Raises:
            SettingError: a name is repeated, an input is unknown or later, a level is outside the range, a node has the
                wrong number of inputs or is read by nothing, or a level has no output; names the node.
        """
        fault = find_fault(self.name, self.levels, self.nodes)
        if fault is not None:
            raise SettingError(fault.message)

    def outputs(self) -> tuple[str, ...]:
        """Names of the cell's outputs, finest level first."""
        by_level = _outputs(self.nodes)
        return tuple(by_level[level] for level in range(self.levels[0], self.levels[1] + 1))


class Fault(NamedTuple):
    """What is wrong with a graph, and the index of the node at fault; None if it is not a single node."""

    message: str
    place: int | None


def _outputs(nodes: Iterable[Node]) -> dict[int, str]:
    last = {node.level: node.name for node in nodes}
    return last | {node.level: node.name for node in nodes if node.name == f"out{node.level}"}


def find_fault(name: str, levels: tuple[int, int], nodes: tuple[Node, ...]) -> Fault | None:
    """Find the first fault for which a graph of nodes cannot run; None if it has none."""
    where = f"feature network '{name}'"
    known = {f"in{level}" for level in range(levels[0], levels[1] + 1)}
    names = [node.name for node in nodes]
    for place, node in enumerate(nodes):
        fault = _node_fault(node, levels, known, names)
        if fault:
            return Fault(f"{where}, node '{node.name}': {fault}", place)
        known.add(node.name)
    outputs = _outputs(nodes)
    for level in range(levels[0], levels[1] + 1):
        if level not in outputs:
            return Fault(f"{where}: no node gives level {level}", None)
    used = {read for node in nodes for read in node.inputs} | set(outputs.values())
    for place, node in enumerate(nodes):
        if node.name not in used:
            return Fault(f"{where}, node '{node.name}': nothing reads it and it is no output", place)
    return None


def _node_fault(node: Node, levels: tuple[int, int], known: set[str], names: list[str]) -> str:
    if node.name in known:
        return f"two nodes are called '{node.name}'"
    if not levels[0] <= node.level <= levels[1]:
        return f"level {node.level} is outside {levels[0]}-{levels[1]}"
    if not node.inputs or (node.combine == "attention" and len(node.inputs) < 2):
        return f"has {len(node.inputs)} inputs"
    for read in node.inputs:
        if read not in known:
            why = "comes later, or the graph has a cycle" if read in names else "does not exist"
            return f"its input '{read}' {why}"
    return ""


def fpn(low: int, high: int) -> list[Node]:
    """Top-down only (Lin et al. 2017; figure 2a)."""
    top = [Node(f"out{high}", high, (f"in{high}",))]
    return top + [Node(f"out{i}", i, (f"in{i}", f"out{i + 1}")) for i in range(high - 1, low - 1, -1)]


def panet(low: int, high: int) -> list[Node]:
    """Top-down, then bottom-up (Liu et al. 2018; figure 2b)."""
    down = [Node(f"td{high}", high, (f"in{high}",))]
    down += [Node(f"td{i}", i, (f"in{i}", f"td{i + 1}")) for i in range(high - 1, low - 1, -1)]
    up = [Node(f"out{low}", low, (f"td{low}",))]
    return down + up + [Node(f"out{i}", i, (f"td{i}", f"out{i - 1}")) for i in range(low + 1, high + 1)]


def simplified_panet(low: int, high: int) -> list[Node]:
    """PANet without the nodes that have a single input, which fuse nothing."""
    return _two_ways(low, high, keeps_input=False)


def bifpn(low: int, high: int) -> list[Node]:
    """Simplified PANet, with an extra edge from each level's input to its output (figure 2d, section 3.2)."""
    return _two_ways(low, high, keeps_input=True)


def _two_ways(low: int, high: int, keeps_input: bool) -> list[Node]:
    nodes = []
    above = f"in{high}"
    for i in range(high - 1, low, -1):
        nodes.append(Node(f"td{i}", i, (f"in{i}", above)))
        above = f"td{i}"
    nodes.append(Node(f"out{low}", low, (f"in{low}", above)))
    for i in range(low + 1, high):
        own = (f"in{i}", f"td{i}") if keeps_input else (f"td{i}",)
        nodes.append(Node(f"out{i}", i, (*own, f"out{i - 1}")))
    nodes.append(Node(f"out{high}", high, (f"in{high}", f"out{high - 1}")))
    return nodes


def fully_connected(low: int, high: int) -> list[Node]:
    """Every output reads every input."""
    everything = tuple(f"in{i}" for i in range(low, high + 1))
    return [Node(f"out{i}", i, everything) for i in range(low, high + 1)]


def nas_fpn(low: int, high: int) -> list[Node]:
    """The cell that was found by search (Ghiasi et al. 2019; figure 2c) for five levels; more are added bottom-up."""
    i3, i4, i5, i6, i7 = (f"in{low + step}" for step in range(5))
    o3, o4, o5, o6, o7 = (f"out{low + step}" for step in range(5))
    nodes = [
        Node("a", low + 1, (i6, i4), "attention"),
        Node("b", low + 1, ("a", i4)),
        Node(o3, low, ("b", i3)),
        Node(o4, low + 1, (o3, "b")),
        Node(o5, low + 2, (i5, o4, o3), "attention"),
        Node(o7, low + 4, (i7, o5, "b"), "attention"),
        Node(o6, low + 3, (o7, o5), "attention"),
    ]
    return nodes + [Node(f"out{i}", i, (f"in{i}", f"out{i - 1}")) for i in range(low + 5, high + 1)]


TOPOLOGIES: dict[str, Callable[[int, int], list[Node]]] = {
    "bifpn": bifpn,
    "fpn": fpn,
    "panet": panet,
    "simplified-panet": simplified_panet,
    "nas-fpn": nas_fpn,
    "fully-connected": fully_connected,
}


def spec_topology(spec: ModelSpec) -> Topology:
    """Build a spec's cell: its custom nodes, or those of the named feature network.

    Raises:
        UnknownNameError: the name is not one of `TOPOLOGIES`.
        SettingError: the custom nodes are not a graph that can run.
    """
    if spec.nodes is None:
        return build_topology(spec.feature_network, spec.levels)
    nodes = tuple(Node(name, level, inputs, cast(Combine, combine)) for name, level, inputs, combine in spec.nodes)
    return Topology(spec.feature_network, spec.levels, nodes)


def build_topology(name: str, levels: tuple[int, int]) -> Topology:
    """Build the cell of a named feature network for the given levels.

    Raises:
        UnknownNameError: the name is not one of `TOPOLOGIES`.
        SettingError: NAS-FPN needs at least five levels.
    """
    name = find_name("feature network", name, TOPOLOGIES)
    if name == "nas-fpn" and levels[1] - levels[0] < 4:
        raise SettingError(f"nas-fpn needs at least five levels, not {levels[0]}-{levels[1]}")
    return Topology(name, levels, tuple(TOPOLOGIES[name](*levels)))
