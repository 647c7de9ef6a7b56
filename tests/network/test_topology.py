"""The feature networks as graphs: edge for edge those of the papers, and faulty graphs refused by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.network.topology import TOPOLOGIES, Node, Topology, build_topology

P3_P7, P3_P8 = (3, 7), (3, 8)


def edges(name: str, levels: tuple[int, int] = P3_P7) -> dict[str, tuple[str, ...]]:
    return {node.name: node.inputs for node in build_topology(name, levels).nodes}


def test_fpn() -> None:
    assert edges("fpn") == {
        "out7": ("in7",), "out6": ("in6", "out7"), "out5": ("in5", "out6"), "out4": ("in4", "out5"),
        "out3": ("in3", "out4"),
    }  # fmt: skip


def test_panet() -> None:
    assert edges("panet") == {
        "td7": ("in7",), "td6": ("in6", "td7"), "td5": ("in5", "td6"), "td4": ("in4", "td5"), "td3": ("in3", "td4"),
        "out3": ("td3",), "out4": ("td4", "out3"), "out5": ("td5", "out4"), "out6": ("td6", "out5"),
        "out7": ("td7", "out6"),
    }  # fmt: skip


def test_simplified_panet() -> None:
    assert edges("simplified-panet") == {
        "td6": ("in6", "in7"), "td5": ("in5", "td6"), "td4": ("in4", "td5"), "out3": ("in3", "td4"),
        "out4": ("td4", "out3"), "out5": ("td5", "out4"), "out6": ("td6", "out5"), "out7": ("in7", "out6"),
    }  # fmt: skip


def test_bifpn() -> None:
    assert edges("bifpn") == {
        "td6": ("in6", "in7"), "td5": ("in5", "td6"), "td4": ("in4", "td5"), "out3": ("in3", "td4"),
        "out4": ("in4", "td4", "out3"), "out5": ("in5", "td5", "out4"), "out6": ("in6", "td6", "out5"),
        "out7": ("in7", "out6"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "offsets"),
    [
        (P3_P7, [(3, 4), (2, 5), (1, 6), (0, 7), (1, 7, 8), (2, 6, 9), (3, 5, 10), (4, 11)]),
        (
            P3_P8,
            [(4, 5), (3, 6), (2, 7), (1, 8), (0, 9), (1, 9, 10), (2, 8, 11), (3, 7, 12), (4, 6, 13), (5, 14)],
        ),
    ],
)
def test_bifpn_has_the_references_node_order(levels: tuple[int, int], offsets: list[tuple[int, ...]]) -> None:
    """Released weights are stored by position: node and input offsets as in the reference's list."""
    topology = build_topology("bifpn", levels)
    names = [f"in{level}" for level in range(levels[0], levels[1] + 1)]
    names += [node.name for node in topology.nodes]
    assert [tuple(names.index(name) for name in node.inputs) for node in topology.nodes] == offsets
    count = levels[1] - levels[0] + 1
    assert [names.index(name) for name in topology.outputs()] == list(range(len(names) - count, len(names)))


def test_fully_connected() -> None:
    everything = ("in3", "in4", "in5", "in6", "in7")
    assert edges("fully-connected") == {f"out{level}": everything for level in range(3, 8)}


def test_nas_fpn() -> None:
    nodes = {node.name: (node.level, node.inputs, node.combine) for node in build_topology("nas-fpn", P3_P7).nodes}
    assert nodes == {
        "a": (4, ("in6", "in4"), "attention"),
        "b": (4, ("a", "in4"), "sum"),
        "out3": (3, ("b", "in3"), "sum"),
        "out4": (4, ("out3", "b"), "sum"),
        "out5": (5, ("in5", "out4", "out3"), "attention"),
        "out7": (7, ("in7", "out5", "b"), "attention"),
        "out6": (6, ("out7", "out5"), "attention"),
    }


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("levels", [P3_P7, P3_P8])
def test_every_network_covers_every_level(name: str, levels: tuple[int, int]) -> None:
    topology = build_topology(name, levels)
    expected = tuple(f"out{level}" for level in range(levels[0], levels[1] + 1))
    assert topology.outputs() == expected
    # Every input takes part.
    read = {source for node in topology.nodes for source in node.inputs}
    assert {f"in{level}" for level in range(levels[0], levels[1] + 1)} <= read


def test_unknown_network() -> None:
    with pytest.raises(UnknownNameError, match="unknown feature network 'bifpm'; did you mean 'bifpn'.*nas-fpn"):
        build_topology("bifpm", P3_P7)


def test_nas_fpn_needs_five_levels() -> None:
    with pytest.raises(SettingError, match="nas-fpn needs at least five levels, not 3-6"):
        build_topology("nas-fpn", (3, 6))


OUT3, OUT4 = Node("out3", 3, ("in3",)), Node("out4", 4, ("in4", "out3"))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Node("a", 3, ("b",)), Node("b", 3, ("a",)), OUT3, OUT4], "node 'a': its input 'b' comes later.*cycle"),
        ([Node("out3", 3, ("out3",)), OUT4], "node 'out3': its input 'out3' comes later.*cycle"),
        ([Node("out3", 3, ("in3", "in9")), OUT4], "node 'out3': its input 'in9' does not exist"),
        ([Node("lost", 3, ("in3",)), OUT3, OUT4], "node 'lost': nothing reads it"),
        ([OUT3], "no node gives level 4"),
        ([OUT3, Node("out4", 5, ("in4",))], "node 'out4': level 5 is outside 3-4"),
        ([OUT3, OUT4, Node("out4", 4, ("in4",))], "two nodes are called 'out4'"),
        ([Node("in3", 3, ("in4",)), OUT3, OUT4], "two nodes are called 'in3'"),
        ([OUT3, Node("out4", 4, ())], "node 'out4': has 0 inputs"),
        ([OUT3, Node("out4", 4, ("in4",), "attention")], "node 'out4': has 1 inputs"),
    ],
)
def test_faulty_graphs_are_refused_by_name(nodes: list[Node], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Topology("mine", (3, 4), tuple(nodes))
    assert "feature network 'mine'" in str(caught.value)


def test_the_last_node_of_a_level_is_its_output_where_none_has_the_name() -> None:
    topology = Topology("mine", (3, 4), (Node("x", 3, ("in3", "in4")), Node("y", 4, ("x",))))
    assert topology.outputs() == ("x", "y")


def test_the_graphs_need_no_torch() -> None:
    program = "import sys, efficientdet.network.topology; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
