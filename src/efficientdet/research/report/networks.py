"""Section 2 of the report: the feature networks' costs, beside Tables 5 and 4 of the paper, and why they differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from efficientdet.atomic_write import write_text
from efficientdet.family import MODELS, ModelSpec, compound_scaling
from efficientdet.network.count import PARTS, count, count_parts
from efficientdet.network.efficientdet import COCO_SLOTS
from efficientdet.network.topology import TOPOLOGIES, build_topology
from efficientdet.research.draw_topology import draw_topology
from efficientdet.research.peers import TABLE_4, TABLE_5
from efficientdet.research.report.markdown import table, times

# Networks whose cell is a single pass over the levels; two of them make up one of the others' cells, which go down and
# up again (or, for NAS-FPN, to and fro).
ONE_WAY = ("fpn", "fully-connected")
# The parts that a published ratio may be about.
SCOPES: dict[str, tuple[str, ...]] = {
    "feature network alone": ("feature_network",),
    "feature network and heads": ("feature_network", "class_head", "box_head"),
    "whole model": PARTS,
}
# Models at whose scale the published ratios may have been taken. Table 5's best AP is that of B3 + BiFPN in Table 4.
SCALES: dict[str, ModelSpec] = {
    "D0": MODELS["d0"],
    "D3": MODELS["d3"],
    "D3 as in arXiv v1 (5 cells)": compound_scaling(3, "arxiv-v1"),
}
SHOWN_READINGS = 8

Ratios = list[tuple[float, float]]


class Reading(NamedTuple):
    """One way of understanding Table 5, and what it gives.

    Attributes:
        scale: a name in `SCALES`.
        is_separable: depthwise separable convolutions in the feature network, or full ones.
        doubles_one_way: two cells of `ONE_WAY` networks for each cell of the others, or as many cells of all.
        scope: a name in `SCOPES`.
        ratios: of parameters and multiply-adds, by row of `TABLE_5`.
    """

    scale: str
    is_separable: bool
    doubles_one_way: bool
    scope: str
    ratios: Ratios

    def distance(self) -> float:
        """Root mean square of the relative differences from the published ratios, the first row (1.0x) apart."""
        logs = [
            math.log(ours / published)
            for row, pair in zip(TABLE_5[1:], self.ratios[1:], strict=True)
            for ours, published in zip(pair, (row.parameters_ratio, row.multiply_adds_ratio), strict=True)
        ]
        return math.sqrt(sum(value * value for value in logs) / len(logs))


def networks_section(out: Path, scales: Mapping[str, ModelSpec] = SCALES) -> str:
    """Draw every feature network into the folder, and give the section.

    Args:
        out: folder of the drawings.
        scales: the models to count at, by what to call them.
    """
    drawings = []
    for name in TOPOLOGIES:
        write_text(out / f"network_{name}.svg", draw_topology(build_topology(name, (3, 7))))
        drawings.append(f"![{name}](network_{name}.svg)")
    parts = ["## 2. Feature networks\n", "\n".join(drawings) + "\n", _equal(scales), _readings(scales), _backbones()]
    return "\n".join(parts)


def equal_rows(spec: ModelSpec) -> list[dict[str, Any]]:
    """One row for each feature network in a model: costs, and their ratios to FPN's, at equal width and depth."""
    rows, first = [], None
    for name in TOPOLOGIES:
        variant = dataclasses.replace(spec, feature_network=name, fusion="none")
        parts, whole = count_parts(variant)["feature_network"], count(variant)
        first = first or (count_parts(_fpn(spec))["feature_network"], count(_fpn(spec)))
        nodes = build_topology(name, spec.levels).nodes
        rows.append(
            {
                "feature network": name,
                "nodes a cell": len(nodes),
                "edges a cell": sum(len(node.inputs) for node in nodes),
                "params M": round(parts[0] / 1e6, 3),
                "GMAC": round(parts[1] / 1e9, 3),
                "params over FPN": times(parts[0] / first[0][0]),
                "GMAC over FPN": times(parts[1] / first[0][1]),
                "whole model: params": times(whole[0] / first[1][0]),
                "whole model: GMAC": times(whole[1] / first[1][1]),
            }
        )
    return rows


def _fpn(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, feature_network="fpn", fusion="none")


def _equal(scales: Mapping[str, ModelSpec]) -> str:
    tables = [
        f"At {name}: {spec.depth} cells of {spec.width} channels, input {spec.image_size}\n\n{table(equal_rows(spec))}"
        for name, spec in scales.items()
    ]
    return (
        "### At equal width and depth\n\nThe feature network alone, its laterals included, and the whole model; "
        "separable convolutions, plain sums. Weights would add one number an edge and no convolution. Every node is "
        "one convolution, and levels differ fourfold in positions, so nodes on P3 are what costs: one for FPN, BiFPN, "
        "simplified PANet, fully-connected and NAS-FPN, two for PANet.\n\n" + "\n".join(tables)
    )


def read_table_5(scale: str, spec: ModelSpec, is_separable: bool, doubles_one_way: bool) -> list[Reading]:
    """Count the rows of Table 5 in one way; one reading for each of `SCOPES`."""
    counts = []
    for row in TABLE_5:
        depth = spec.depth * (2 if doubles_one_way and row.feature_network in ONE_WAY else 1)
        changes = {"feature_network": row.feature_network, "fusion": row.fusion, "depth": depth}
        counts.append(count_parts(dataclasses.replace(spec, separable=is_separable, **changes)))  # type: ignore[arg-type]
    readings = []
    for scope, parts in SCOPES.items():
        totals = [tuple(sum(counted[part][i] for part in parts) for i in (0, 1)) for counted in counts]
        ratios = [(total[0] / totals[0][0], total[1] / totals[0][1]) for total in totals]
        readings.append(Reading(scale, is_separable, doubles_one_way, scope, ratios))
    return readings


def all_readings(scales: Mapping[str, ModelSpec]) -> list[Reading]:
    """Every reading, nearest to the published ratios first."""
    found = [
        reading
        for scale, spec in scales.items()
        for is_separable in (True, False)
        for doubles in (False, True)
        for reading in read_table_5(scale, spec, is_separable, doubles)
    ]
    return sorted(found, key=Reading.distance)


def _readings(scales: Mapping[str, ModelSpec]) -> str:
    readings = all_readings(scales)
    nearest = readings[0]
    literal = [one for one in readings if not one.doubles_one_way and one.is_separable and one.scope == "whole model"]
    equal = [one for one in readings if not one.doubles_one_way]
    shown = list(dict.fromkeys(str(one) for one in (*readings[:SHOWN_READINGS], equal[0], literal[0])))
    rows = [_reading_row(one) for one in readings if str(one) in shown]
    published = (
        {key: "" for key in rows[0]}
        | {"scale": "**published, Table 5**"}
        | {row.name: f"{row.parameters_ratio:.2f} / {row.multiply_adds_ratio:.2f}" for row in TABLE_5}
    )
    return (
        "### Beside Table 5 of the paper\n\n"
        "Table 5 gives ratios of parameters and FLOPs without saying what of. Section 6.2 says: FPN and PANet are "
        "repeated several times, all their convolutions made depthwise separable as in BiFPN, backbone and heads the "
        "same for all. It does not say how often each is repeated, which model it is, and whether the ratios are of "
        "the model or of the feature network. So every reading was counted: scale, separable or full convolutions, as "
        "many cells for all or two one-way cells (FPN, fully-connected) for one of the others, and the part counted. "
        "Each entry is parameters / multiply-adds over the first column's. *Off* is the root mean square of the "
        f"relative differences. Of {len(readings)} readings: the {SHOWN_READINGS} nearest, the nearest with as many "
        f"cells for all, and the nearest of the whole model taken literally.\n\n"
        f"{table([published, *rows])}\n{_why(nearest, equal[0])}"
    )


def _reading_row(reading: Reading) -> dict[str, Any]:
    return {
        "scale": reading.scale,
        "convolutions": "separable" if reading.is_separable else "full",
        "one-way cells": "two for one" if reading.doubles_one_way else "as many",
        "counted": reading.scope,
        "off": f"{reading.distance():.1%}",
    } | {row.name: f"{a:.2f} / {b:.2f}" for row, (a, b) in zip(TABLE_5, reading.ratios, strict=True)}


def _why(nearest: Reading, equal: Reading) -> str:
    sizes = {name: len(build_topology(name, (3, 7)).nodes) for name in ("fpn", "panet")}
    cells = "two one-way cells for one of the others" if nearest.doubles_one_way else "as many cells for all"
    convolutions = "separable" if nearest.is_separable else "full"
    return (
        f"**Nearest: {nearest.scale}, {nearest.scope}, {convolutions} convolutions, {cells}: {nearest.distance():.1%} "
        f"off.** Why the ratios at equal width and depth are others: a PANet cell has {sizes['panet']} convolutions, "
        f"an FPN cell {sizes['fpn']}, so with as many cells PANet costs about twice as much wherever the feature "
        "network is counted alone, and the published 1.0x cannot come out; taken over the whole model, backbone and "
        "heads drown every difference, and the published 0.67x cannot. The best with as many cells is "
        f"{equal.distance():.0%} off. That FPN was repeated twice as often, for two passes against PANet's down and "
        "up, is our conclusion from the numbers and not a statement of the paper. What is left is not explained, "
        "NAS-FPN's parameters above all; the published FLOPs seem to count fusions too (0.68x weighted, 0.67x not), "
        "where we count convolutions alone.\n"
    )


def retinanet_heads(spec: ModelSpec, depth: int = 4, num_classes: int = COCO_SLOTS) -> tuple[int, int]:
    """Parameters and multiply-adds of RetinaNet's two heads: full 3x3 convolutions with biases (Lin et al. 2017).

    Ours are always separable, so these are counted by formula.
    """
    positions = sum(math.ceil(spec.image_size / stride) ** 2 for stride in spec.strides)
    weights = biases = 0
    for outputs in (num_classes, 4):
        last = spec.anchors_per_cell * outputs
        weights += 9 * spec.width * (depth * spec.width + last)
        biases += depth * spec.width + last
    return weights + biases, weights * positions


def backbone_rows() -> list[dict[str, Any]]:
    """Rows of Table 4, each as we can best build it, beside the published cost."""
    fpn = ModelSpec("retinanet", "b3", 640, 256, 1, 4, feature_network="fpn", fusion="none", separable=False)
    first_d3 = compound_scaling(3, "arxiv-v1")
    resnet = dataclasses.replace(fpn, backbone="resnet50")
    ways = [
        (TABLE_4[0], "RetinaNet's heads, 640", resnet, True),
        (TABLE_4[0], "our separable heads, 640", resnet, False),
        (TABLE_4[1], "RetinaNet's heads, 640", fpn, True),
        (TABLE_4[1], "our separable heads, 640", fpn, False),
        (TABLE_4[2], "D3 as in arXiv v1, 896", first_d3, False),
        (TABLE_4[2], "D3 as in arXiv v1, 640", dataclasses.replace(first_d3, image_size=640), False),
        (TABLE_4[2], "D3 as released, 896", MODELS["d3"], False),
    ]
    rows = []
    for published, way, spec, is_retinanet in ways:
        parts = count_parts(spec)
        body = [parts["backbone"], parts["feature_network"]]
        heads = [retinanet_heads(spec)] if is_retinanet else [parts["class_head"], parts["box_head"]]
        parameters, cost = (sum(part[i] for part in body + heads) for i in (0, 1))
        rows.append(
            {
                "row": published.name,
                "built as": way,
                "params M": round(parameters / 1e6, 1),
                "published M": published.parameters,
                "GMAC": round(cost / 1e9, 1),
                "published GMAC": published.multiply_adds,
                "published AP": published.ap,
            }
        )
    return rows


def _backbones() -> str:
    return (
        "### Backbone and feature network: Table 4 of the paper\n\nThe FPN rows are RetinaNet's: one cell of 256 "
        "channels, full convolutions, heads of four full 3x3 convolutions, which are counted by formula, since our "
        "heads are always separable. Our P6 and P7 come from a lateral and max-pooling, RetinaNet's from two "
        "convolutions of stride 2. The paper does not give the input sizes: the published costs of the FPN rows come "
        "out near 640 pixels and that of the BiFPN row at 896 with the depth of the first arXiv version, so its step "
        "from 75B to 24B changes the heads and the resolution as well as the feature network. What our B3 + FPN lacks "
        "of the published 75B is not explained.\n\n" + table(backbone_rows())
    )
