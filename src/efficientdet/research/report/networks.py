"""Section 2 of the report: the feature networks' costs, beside Tables 4 and 5 of the paper."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from efficientdet.family import MODELS, ModelSpec, compound_scaling
from efficientdet.network.count import count, count_parts
from efficientdet.network.efficientdet import COCO_SLOTS
from efficientdet.network.topology import TOPOLOGIES, build_topology
from efficientdet.research.draw_topology import draw_topology
from efficientdet.research.figures import save_figure
from efficientdet.research.peers import TABLE_4, TABLE_5, times
from efficientdet.text import markdown_table

# The models whose feature networks are compared.
SCALES = ("d0", "d3")


def networks_parts(out: Path) -> dict[str, str]:
    """Draw every feature network into a folder, and return the tables."""
    for name in TOPOLOGIES:
        save_figure(draw_topology(build_topology(name, (3, 7))), out / f"network_{name}.svg")
    equal = (
        f"{name}: {MODELS[name].depth} cells of {MODELS[name].width} channels, image size {MODELS[name].image_size}\n\n"
        f"{markdown_table(equal_rows(MODELS[name]))}"
        for name in SCALES
    )
    return {
        "drawings": "\n".join(f"![{name}](network_{name}.svg)" for name in TOPOLOGIES),
        "equal": "\n".join(equal),
        "backbones": markdown_table(backbone_rows()),
    }


def equal_rows(spec: ModelSpec) -> list[dict[str, Any]]:
    """One row for each feature network in a model: its costs, their ratios to FPN's, and those of Table 5."""
    published = {row.feature_network: row for row in TABLE_5 if row.fusion == "none"}
    variants = {name: dataclasses.replace(spec, feature_network=name, fusion="none") for name in TOPOLOGIES}
    first = count_parts(variants["fpn"])["feature_network"], count(variants["fpn"])
    rows = []
    for name, variant in variants.items():
        own, whole, paper = count_parts(variant)["feature_network"], count(variant), published.get(name)
        nodes = build_topology(name, spec.levels).nodes
        rows.append(
            {
                "feature network": name,
                "nodes": len(nodes),
                "edges": sum(len(node.inputs) for node in nodes),
                "params M": round(own[0] / 1e6, 3),
                "GMAC": round(own[1] / 1e9, 3),
                "params ratio": times(own[0] / first[0][0]),
                "GMAC ratio": times(own[1] / first[0][1]),
                "whole model": f"{times(whole[0] / first[1][0])} / {times(whole[1] / first[1][1])}",
                "Table 5: ratios": paper and f"{times(paper.parameters_ratio)} / {times(paper.multiply_adds_ratio)}",
                "Table 5: AP": paper and paper.ap,
            }
        )
    return rows


def backbone_rows() -> list[dict[str, Any]]:
    """The rows of Table 4, each built as nearly as we can, beside what the paper gives."""
    fpn = ModelSpec("retinanet", "b3", 640, 256, 1, 4, feature_network="fpn", fusion="none", separable=False)
    specs = (dataclasses.replace(fpn, backbone="resnet50"), fpn, compound_scaling(3, "arxiv-v1"))
    rows = []
    for published, spec in zip(TABLE_4, specs, strict=True):
        parts = count_parts(spec)
        if spec.feature_network == "fpn":
            parts = {name: parts[name] for name in ("backbone", "feature_network")} | {"heads": retinanet_heads(spec)}
        parameters, multiply_adds = (sum(part[i] for part in parts.values()) for i in (0, 1))
        rows.append(
            {
                "row": published.name,
                "image size": spec.image_size,
                "params M": round(parameters / 1e6, 1),
                "published M": published.parameters,
                "GMAC": round(multiply_adds / 1e9, 1),
                "published GMAC": published.multiply_adds,
                "published AP": published.ap,
            }
        )
    return rows


def retinanet_heads(spec: ModelSpec, depth: int = 4, num_classes: int = COCO_SLOTS) -> tuple[int, int]:
    """Parameters and multiply-adds of RetinaNet's two heads: full 3x3 convolutions with biases (Lin et al. 2017)."""
    positions = sum(math.ceil(spec.image_size / stride) ** 2 for stride in spec.strides)
    outputs = [spec.anchors_per_cell * each for each in (num_classes, 4)]
    weights = sum(9 * spec.width * (depth * spec.width + last) for last in outputs)
    return weights + sum(depth * spec.width + last for last in outputs), weights * positions
