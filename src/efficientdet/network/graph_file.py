"""A custom feature network from a small YAML file.

    name: my-pyramid
    nodes:
      - {name: td6, level: 6, inputs: [in6, in7]}
      - {name: out6, level: 6, inputs: [in6, td6], combine: sum}

Inputs are the inputs of the cell (`in3` ... `in7`) or earlier nodes; see `topology`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.network.topology import Node, Topology, find_fault
from efficientdet.yaml_text import parse_yaml

NODE_FIELDS = set(Node.__dataclass_fields__)
GRAPH_SUFFIXES = (".yaml", ".yml")


def read_graph(path: str | Path, levels: tuple[int, int]) -> Topology:
    """Read a feature network's cell from a YAML file.

    Args:
        path: the file.
        levels: finest and coarsest level of the model.

    Returns:
        The topology.

    Raises:
        SettingError: the file is missing or is not a graph that can run; names file, line and node.
        MissingExtraError: PyYAML is not installed.
    """
    path = Path(path)
    try:
        content, root = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise SettingError(f"{path}: not YAML ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("nodes"), list):
        raise SettingError(f"{path}: a graph file has 'name' and 'nodes', a list of name, level and inputs")
    unknown = sorted(set(content) - {"name", "nodes"})
    if unknown:
        raise SettingError(f"{path}: unknown keys {unknown}; known are name and nodes")
    (entries,) = (value for key, value in root.value if key.value == "nodes")
    lines = [entry.start_mark.line + 1 for entry in entries.value]
    nodes = [_node(row, f"{path}: line {line}") for row, line in zip(content["nodes"], lines, strict=True)]
    name = str(content.get("name", path.stem))
    fault = find_fault(name, levels, tuple(nodes))
    if fault is not None:
        message, place = fault
        where = f": line {lines[place]}" if place is not None else ""
        raise SettingError(f"{path}{where}: {message}")
    return Topology(name, levels, tuple(nodes))


def _node(row: Any, where: str) -> Node:
    if not isinstance(row, dict):
        raise SettingError(f"{where}: a node is a mapping of name, level and inputs, not {row!r}")
    label = f"{where}, node '{row.get('name')}'"
    unknown, missing = sorted(set(map(str, row)) - NODE_FIELDS), sorted({"name", "level", "inputs"} - set(row))
    if unknown or missing:
        raise SettingError(f"{label}: unknown fields {unknown}, missing fields {missing}")
    try:
        node = Node(**row)
    except (SettingError, UnknownNameError) as error:
        raise SettingError(f"{label}: {error}") from None
    if not node.name.isidentifier():
        raise SettingError(f"{label}: a name is letters, digits and _, and begins with no digit")
    return node
