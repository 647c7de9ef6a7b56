"""Feature networks from YAML files: what runs is built, what is wrong is named with line and node."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efficientdet.errors import SettingError
from efficientdet.family import ModelSpec
from efficientdet.network.graph_file import read_graph
from efficientdet.network.topology import bifpn
from efficientdet.weights.create import create_model

GOOD = """\
name: mine
nodes:
  - {name: out5, level: 5, inputs: [in5]}
  - {name: out4, level: 4, inputs: [in4, out5]}
  - name: out3
    level: 3
    inputs: [in3, out4]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "graph.yaml"
    path.write_text(text)
    return path


def test_a_good_file_gives_its_nodes(tmp_path: Path) -> None:
    topology = read_graph(write(tmp_path, GOOD), (3, 5))
    assert topology.name == "mine"
    assert [(node.name, node.level, node.inputs) for node in topology.nodes] == [
        ("out5", 5, ("in5",)),
        ("out4", 4, ("in4", "out5")),
        ("out3", 3, ("in3", "out4")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("[in4, out5]", "[in4, out6]"), "line 4: .*node 'out4': its input 'out6' does not exist"),
        (GOOD.replace("[in5]", "[in5, out3]"), "line 3: .*node 'out5': its input 'out3' comes later, or .* cycle"),
        (GOOD.replace("level: 3\n", "level: 9\n"), "line 5: .*node 'out3': level 9 is outside 3-5"),
        (GOOD.replace("name: out5", "name: lost"), "graph.yaml: line 4: .*'out5' does not exist"),
        (GOOD.replace("level: 4,", "level: four,"), "line 4, node 'out4': level is 'four'"),
        (GOOD.replace("level: 4,", ""), "line 4, node 'out4': .*missing fields \\['level'\\]"),
        (GOOD.replace("level: 4,", "level: 4, color: red,"), "line 4, node 'out4': unknown fields \\['color'\\]"),
        (GOOD.replace("[in5]", "in5"), "line 3, node 'out5': inputs is 'in5'"),
        (GOOD.replace("name: out5", "name: 5out"), "line 3, node '5out': a name is letters"),
        (GOOD + "  - {name: idle, level: 4, inputs: [in4]}\n", "line 8: .*'idle': nothing reads it"),
        (GOOD + "extra: 1\n", "unknown keys \\['extra'\\]"),
        (GOOD + "  - {name: x, level: 3, inputs: [in3], combine: max}\n", "line 8, node 'x': unknown combine 'max'"),
        (GOOD + "  - just text\n", "line 8: a node is a mapping"),
        ("nodes: []\n", "no node gives level 3"),
        ("nodes: [", "not YAML"),
        ("", "a graph file has 'name' and 'nodes'"),
        ("nodes: []\nnodes: []", "the key 'nodes' is there twice"),
        ("!!python/object:os.system {}", "graph.yaml"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read_graph(write(tmp_path, text), (3, 5))


def test_aliases_that_grow_without_end_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    for last in ("nodes: *a11", "nodes: [*a11]", "nodes: [{name: x, level: 3, inputs: *a11}]"):
        with pytest.raises(SettingError, match="aliases"):
            read_graph(write(tmp_path, "\n".join([*lines, last])), (3, 5))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="gone.yaml: cannot be read"):
        read_graph(tmp_path / "gone.yaml", (3, 7))


def test_bifpn_written_as_a_file_is_the_same_network(tmp_path: Path) -> None:
    rows = "".join(f"  - {{name: {n.name}, level: {n.level}, inputs: [{', '.join(n.inputs)}]}}\n" for n in bifpn(3, 7))
    path = write(tmp_path, f"name: own\nnodes:\n{rows}")
    torch.manual_seed(0)
    named = create_model("lite0", 2).eval()
    torch.manual_seed(0)
    own = create_model("lite0", 2, feature_network=path).eval()
    assert own.spec.feature_network == "own"
    assert ModelSpec.from_dict(own.spec.to_dict()) == own.spec
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(named(images)[0], own(images)[0], strict=True):
            assert torch.equal(a, b)


def test_a_graph_for_other_levels_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(SettingError, match="no node gives level 6"):
        create_model("d0", 2, feature_network=path)
    topology = read_graph(path, (3, 5))
    with pytest.raises(SettingError, match=r"for levels \(3, 5\), d0 has \(3, 7\)"):
        create_model("d0", 2, feature_network=topology)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("fusion", ["fast", "softmax", "unbounded"])
def test_weights_of_each_channel_and_full_convolutions_run_and_learn(fusion: str, separable: bool) -> None:
    model = create_model("lite0", 2, fusion=fusion, fusion_per_channel=True, separable=separable)
    weights = [p for name, p in model.named_parameters() if name.endswith("fuse.weights")]
    assert {tuple(w.shape[1:]) for w in weights} == {(64, 1, 1)}
    class_logits, box_deltas = model(torch.randn(2, 3, 64, 64))
    sum(x.square().sum() for x in (*class_logits, *box_deltas)).backward()
    assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in weights)
