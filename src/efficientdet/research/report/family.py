"""Section 1 of the report: the family, beside what was published of it and of its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet.family import MODELS, PUBLISHED_AP
from efficientdet.network.count import count, family_rows
from efficientdet.research.figures import (
    BLUE,
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
from efficientdet.research.peers import PAPER_LATENCY, PEERS, Peer, times
from efficientdet.text import markdown_table

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
