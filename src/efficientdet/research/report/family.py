"""Section 1 of the report: the family, beside what was published of it and of its peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from efficientdet.family import MODELS, PUBLISHED_AP
from efficientdet.network.count import count, family_rows
from efficientdet.research.figures import (
    BLUE,
    GRAY,
    LEFT,
    LOWER_RIGHT,
    RED,
    RIGHT,
    TEAL,
    UPPER_LEFT,
    Series,
    plot,
    save_figure,
)
from efficientdet.research.markdown import spread, table, times
from efficientdet.research.peers import PAPER_LATENCY, PEERS, Peer

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


def family_section(out: Path, latencies: Mapping[str, Sequence[float]]) -> str:
    """Write the figures into a folder, and return the section.

    Args:
        out: the folder.
        latencies: milliseconds of some forward passes, by model; empty where nothing was measured.
    """
    save_figure(ap_figure(), out / "ap_over_multiply_adds.png")
    text = (
        "## 1. The family\n\nParameters and multiply-adds (GMAC: 10^9) are counted from the code, with 90 classes, at "
        "the model's image size, batch 1. Multiply-adds are those of the convolutions; the published figures include "
        "batch norms, activations and fusions, which add up to 2.4%. AP is as published: COCO test-dev with soft-NMS "
        f"for D0-D7x, val2017 for lite.\n\n{table(family_rows())}\n"
        "![COCO AP over multiply-adds](ap_over_multiply_adds.png)\n\n"
        "### Peers\n\nOther detectors, as published in Table 2 of the paper, and their ratios to our counts; in "
        "brackets, as the paper prints them. Times are the paper's, peer : EfficientDet. On the V100, detectron2 is "
        f"compared with float16 TensorFlow, pre- and post-processing included.\n\n{table(peer_rows())}\n"
        "One printed ratio does not follow from the paper's own figures: RetinaNet R50 has 34M / 6.6M = 5.1x the "
        "parameters of D1; the paper prints 6.7x.\n"
    )
    if not latencies:
        return text
    save_figure(latency_figure(latencies), out / "latency_over_multiply_adds.png")
    return text + (
        "\n### Latency\n\nOne forward pass of the network in PyTorch: float32, batch 1, channels_last, boxes not "
        "decoded. Median of the passes, least and largest in brackets. The last column is 1 where the time grows as "
        f"the multiply-adds do.\n\n{table(latency_rows(latencies))}\n"
        "![Latency over multiply-adds](latency_over_multiply_adds.png)\n"
    )


def _gmac(name: str) -> float:
    return count(MODELS[name])[1] / 1e9


def ap_figure() -> Figure:
    """COCO AP over multiply-adds: the family as two lines, its peers as points."""
    lites = [name for name in MODELS if name.startswith("lite")]
    series = [
        Series(title, {name: (_gmac(name), PUBLISHED_AP[name]) for name in names}, color, "-", label_at=label_at)
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
        is_val = not peers[0].is_test_dev
        title = f"{family} ({'val2017' if is_val else 'test-dev'})"
        series.append(Series(title, points, RED, "", marker, is_hollow=is_val, label_at=label_at))
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
    ours = PAPER_LATENCY[peer.compared_with]
    pairs = (
        (peer.titan_v_ms, ours.titan_v_ms, "ms Titan V"),
        (peer.v100_ms, ours.v100_ms, "ms V100"),
        (peer.cpu_s, ours.cpu_s, "s CPU"),
    )
    return "; ".join(f"{theirs:g} : {own:g} {unit}" for theirs, own, unit in pairs if theirs and own) or None


def latency_rows(latencies: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One row for each measured model: its time, and its time for a multiply-add over the first one's."""
    per_gmac = {name: median(times) / _gmac(name) for name, times in latencies.items()}
    first = next(iter(latencies))
    return [
        {
            "model": name,
            "GMAC": round(_gmac(name), 2),
            "ms": spread(times),
            "ms per GMAC": round(per_gmac[name], 2),
            f"over {first}'s": round(per_gmac[name] / per_gmac[first], 2),
        }
        for name, times in latencies.items()
    ]


def latency_figure(latencies: Mapping[str, Sequence[float]]) -> Figure:
    """Latency over multiply-adds, beside a line through the first model along which they are proportional."""
    points = {name: (_gmac(name), median(times)) for name, times in latencies.items()}
    first, (x, y) = next(iter(points.items()))
    costs = sorted(cost for cost, _ in points.values())
    ends = {str(cost): (cost, y * cost / x) for cost in (costs[0], costs[-1])}
    series = [Series(f"proportional to {first}", ends, GRAY, "--", "", label_at=None)]
    for title, is_lite, color, label_at in (
        ("EfficientDet", False, BLUE, UPPER_LEFT),
        ("EfficientDet-Lite", True, TEAL, LOWER_RIGHT),
    ):
        own = {name: point for name, point in points.items() if name.startswith("lite") is is_lite}
        series += [Series(title, own, color, "-", label_at=label_at)] if own else []
    return plot("Latency over multiply-adds", "GMAC", "ms, one forward pass, batch 1", series)
