"""The report: the paper's comparisons, counted and measured from this code, as markdown with figures.

`report.md` beside this file has the words; for each section a function here gives tables and numbers, by the names that
stand in braces there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efficientdet.atomic_write import write_text
from efficientdet.errors import SettingError, require
from efficientdet.family import MODELS, PUBLISHED_AP, ModelSpec, compound_scaling, level_sizes
from efficientdet.inference.benchmark import Spread
from efficientdet.inference.hardware import Hardware
from efficientdet.inference.timing import time_in_turns
from efficientdet.network.count import count, count_parts, family_rows
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.network.topology import TOPOLOGIES, build_topology
from efficientdet.research.figures import (
    BLUE,
    LEFT,
    LOWER_RIGHT,
    RED,
    RIGHT,
    TEAL,
    UPPER_LEFT,
    Series,
    draw_topology,
    plot,
    save_figure,
)
from efficientdet.research.peers import FAST_OVER_SOFTMAX, PAPER_LATENCY, PEERS, TABLE_4, TABLE_5, Peer, times
from efficientdet.research.scaling import scaling_parts
from efficientdet.research.settings import ReportSettings
from efficientdet.text import markdown_table
from efficientdet.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Marker of each family of peers, and where its labels stand.
PEER_STYLES = {
    "YOLOv3": ("s", RIGHT),
    "RetinaNet": ("^", LOWER_RIGHT),
    "Mask R-CNN": ("D", UPPER_LEFT),
    "R50 + NAS-FPN": ("v", LOWER_RIGHT),
    "AmoebaNet + NAS-FPN": ("P", LEFT),
}


# The models whose feature networks are compared.
SCALES = ("d0", "d3")
# The model whose feature network is timed and compared.
SPEC = MODELS["d0"]
ROUNDS = 40


def family_parts(out: Path) -> dict[str, str]:
    """Write the figure into a folder, and return the tables."""
    save_figure(ap_figure(), out / "ap_over_multiply_adds.png")
    return {"family": markdown_table(family_rows()), "peers": markdown_table(peer_rows())}


def ap_figure() -> Figure:
    """COCO AP over multiply-adds: the family as two lines, its peers as points."""
    costs = {name: count(spec)[1] / 1e9 for name, spec in MODELS.items()}
    lites = [name for name in MODELS if name.startswith("lite")]
    series = [
        Series(title, {name: (costs[name], PUBLISHED_AP[name]) for name in names}, "o-", color, label_at)
        for title, names, color, label_at in (
            ("EfficientDet (test-dev)", [name for name in MODELS if name not in lites], BLUE, UPPER_LEFT),
            ("EfficientDet-Lite (val2017)", lites, TEAL, LOWER_RIGHT),
        )
    ]
    for family, (marker, label_at) in PEER_STYLES.items():
        peers = [peer for peer in PEERS if peer.family == family and peer.multiply_adds is not None]
        points = {  # the legend has the family's name
            peer.name.removeprefix(family).strip() or peer.name: (peer.multiply_adds or 0.0, peer.ap) for peer in peers
        }
        title = f"{family} ({'test-dev' if peers[0].is_test_dev else 'val2017'})"
        series.append(Series(title, points, marker, RED, label_at))
    return plot("COCO AP (published) over multiply-adds", "GMAC", "COCO AP", series, ("log", "linear"))


def peer_rows() -> list[dict[str, Any]]:
    """One row for each peer: its published figures, and their ratios to our counts and as the paper prints them."""
    rows = []
    for peer in PEERS:
        parameters, multiply_adds = count(MODELS[peer.compared_with])
        rows.append(
            {
                "peer": peer.name,
                "AP": f"{peer.ap} {'test-dev' if peer.is_test_dev else 'val'}",
                "beside": f"{peer.compared_with} ({PUBLISHED_AP[peer.compared_with]} test-dev)",
                "params M": peer.parameters,
                "params over ours (printed)": _ratios(peer.parameters, parameters / 1e6, peer.parameters_ratio),
                "GMAC": peer.multiply_adds,
                "GMAC over ours (printed)": _ratios(peer.multiply_adds, multiply_adds / 1e9, peer.multiply_adds_ratio),
                "time": _published_times(peer),
            }
        )
    return rows


def _ratios(value: float | None, ours: float, printed: float | None) -> str | None:
    return None if value is None else f"{times(value / ours)} ({times(printed)})"


def _published_times(peer: Peer) -> str | None:
    pairs = zip(peer.latency, PAPER_LATENCY[peer.compared_with], ("ms Titan V", "ms V100", "s CPU"), strict=True)
    return "; ".join(f"{theirs:g} : {ours:g} {unit}" for theirs, ours, unit in pairs if theirs and ours) or None


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


def fusions_parts(device: str | None) -> dict[str, str]:
    """The text; the fusions are timed on a device, or not at all."""
    return {"speed": "Not measured.\n" if device is None else _speed(fusion_times(SPEC, device))}


def make_network(spec: ModelSpec, fusion: str) -> tuple[FeatureNetwork, list[Tensor]]:
    """A feature network with random convolutions, and noise as its input: the same for every fusion, at every call.

    Returns:
        The network, in evaluation mode, and [P3, P4, P5], (1, C, h, w) each.
    """
    sizes = level_sizes((spec.image_size, spec.image_size), spec.levels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EfficientDet(dataclasses.replace(spec, fusion=fusion), 1).eval()
        features = [torch.randn(1, C, *size) for C, size in zip(model.backbone.channels, sizes, strict=False)]
    return model.feature_network, features


def fusion_times(spec: ModelSpec, device: str, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of the feature network with each fusion, in turns, by kind of fusion."""
    works = {}
    for kind in FUSIONS:
        network, features = make_network(spec, kind)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = [x.to(device).contiguous(memory_format=torch.channels_last) for x in features]
        works[kind] = partial(network, inputs)
    return time_in_turns(works, device, rounds)


def _speed(found: Mapping[str, Sequence[float]]) -> str:
    ratios = {kind: [a / b for a, b in zip(values, found["fast"], strict=True)] for kind, values in found.items()}
    rows = [
        {"fusion": kind, "ms": Spread.of(values).text(1), "over fast's": Spread.of(ratios[kind]).text(2)}
        for kind, values in found.items()
    ]
    return (
        f"The feature network of {SPEC.name} in PyTorch: float32, batch 1, in rounds in which each fusion runs once. "
        "Median of the rounds, least and largest in brackets. On the paper's GPU, whole detectors with softmax took "
        f"{min(FAST_OVER_SOFTMAX)}-{max(FAST_OVER_SOFTMAX)} times as long as with fast; here the feature network takes "
        f"{median(ratios['softmax']):.2f} times as long. In exported files the normalized weights are constants, so "
        f"that the two cost the same.\n\n{markdown_table(rows)}"
    )


def write_report(
    out: str | Path, settings: ReportSettings | None = None, *, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Write `report.md` and its figures (PNG, SVG) into a folder: takes one or two minutes.

    Args:
        out: the folder; made if missing, files of an earlier report in it are replaced.
        settings: what to measure and show; the defaults when None.
        say: called with a line on each part that begins.

    Returns:
        The path of `report.md`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SettingError: times are to be measured on cuda, and there is no GPU.
    """
    settings = settings or ReportSettings()
    require("matplotlib", "report")
    folder, device, machine = Path(out), settings.device if settings.timing else None, "not measured"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("device is cuda, and PyTorch finds no GPU; choose cpu")
    if device is not None:
        machine = f"measured on {Hardware.read(device)}; torch {torch.__version__}, threads: {torch.get_num_threads()}"
    parts = {"version": __version__, "date": str(date.today()), "machine": machine}
    say("counting the family")
    parts |= family_parts(folder)
    say("counting feature networks")
    parts |= networks_parts(folder)
    say("comparing fusions")
    parts |= fusions_parts(device)
    say("counting scaled models")
    parts |= scaling_parts(folder)
    text = Path(__file__).with_name("report.md").read_text(encoding="utf-8")
    write_text(folder / "report.md", text.format(**parts))
    return folder / "report.md"
