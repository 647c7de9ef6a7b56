"""Section 1 of the report: the family counted, beside what was published of it and of its peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientdet.family import PUBLISHED, PUBLISHED_AP, ModelSpec
from efficientdet.network.count import count
from efficientdet.research.peers import PAPER_LATENCY, PEERS, Peer
from efficientdet.research.report import figures
from efficientdet.research.report.markdown import table, times
from efficientdet.research.scaling import PowerFit, relative_time_per_multiply_add
from efficientdet.research.spread import Spread

# A published ratio further from that of the published figures than this is pointed out.
ROUNDING = 0.08
# How far from proportional time may grow with cost, for the guide in the text.
PROPORTIONAL = 0.3


def family_section(
    out: Path, specs: Sequence[ModelSpec], latencies: Mapping[str, Spread] | None, where: str, largest: str
) -> str:
    """Write the pictures, and give the section.

    Args:
        out: folder of the pictures.
        specs: released models.
        latencies: milliseconds by name of those that were measured; None where none should be.
        where: the machine, for the heading.
        largest: name of the largest model that was to be measured.
    """
    parts = ["## 1. The family\n", _counted(specs)]
    figure = ap_picture(specs)
    figures.save(figure, out / "ap_over_multiply_adds")
    parts.append("![COCO AP over multiply-adds](ap_over_multiply_adds.png)\n")
    parts.append(_peers(specs))
    if latencies is not None:
        parts.append(_latency(out, specs, latencies, where, largest))
    return "\n".join(parts)


def family_rows(specs: Sequence[ModelSpec]) -> list[dict[str, Any]]:
    """One row a model: what the code counts, what was published, and the AP."""
    rows = []
    for spec in specs:
        parameters, multiply_adds = count(spec)
        rows.append(
            {
                "model": spec.name,
                "backbone": spec.backbone,
                "input": spec.image_size,
                "params M": f"{parameters / 1e6:.3f}",
                "published M": f"{PUBLISHED[spec.name][0] / 1e6:.3f}",
                "GMAC": round(multiply_adds / 1e9, 2),
                "published GMAC": round(PUBLISHED[spec.name][1] / 1e9, 2),
                "counted / published": round(multiply_adds / PUBLISHED[spec.name][1], 3),
                "published AP": PUBLISHED_AP[spec.name],
            }
        )
    return rows


def _counted(specs: Sequence[ModelSpec]) -> str:
    return (
        "Parameters are counted from the code, with 90 classes. Multiply-adds (GMAC: 10^9) are those of the "
        "convolutions at the input size, batch 1; the published figures count batch norms, activations and fusions "
        "too, hence the small difference. AP is as published, not measured here: COCO test-dev with soft-NMS for "
        "D0-D7x, val2017 for lite.\n\n" + table(family_rows(specs))
    )


def ap_picture(specs: Sequence[ModelSpec]) -> Any:
    """COCO AP over multiply-adds: the family as lines, the published peers as points; returns a figure."""
    series = [
        figures.Series(
            name,
            {s.name: (count(s)[1] / 1e9, PUBLISHED_AP[s.name]) for s in specs if s.name.startswith("lite") is is_lite},
            color, is_line=True,
        )
        for name, is_lite, color in (
            ("EfficientDet (counted here; AP test-dev)", False, figures.BLUE),
            ("EfficientDet-Lite (AP val2017)", True, figures.TEAL),
        )
    ]  # fmt: skip
    families = list(dict.fromkeys(peer.family for peer in PEERS))
    for marker, family in zip(figures.MARKERS, families, strict=False):
        peers = [peer for peer in PEERS if peer.family == family and peer.multiply_adds]
        # The legend has the family's name.
        points = {
            peer.name.removeprefix(family).strip() or peer.name: (float(peer.multiply_adds or 0), peer.ap)
            for peer in peers
        }
        is_val = not peers[0].is_test_dev
        series.append(
            figures.Series(
                f"{family} (AP {'val2017' if is_val else 'test-dev'})", points, figures.RED, marker, is_hollow=is_val
            )
        )
    return figures.labeled_points(
        "COCO AP (published) over multiply-adds", "multiply-adds, 10⁹", "COCO AP", [one for one in series if one.points]
    )


def peer_rows(specs: Sequence[ModelSpec]) -> list[dict[str, Any]]:
    """One row for each published peer of the models given: its ratios to the counted model, and the published ones."""
    by_name = {spec.name: spec for spec in specs}
    rows = []
    for peer in PEERS:
        if peer.compared_with not in by_name:
            continue
        parameters, multiply_adds = count(by_name[peer.compared_with])
        rows.append(
            {
                "peer": peer.name,
                "AP": f"{peer.ap} {'test-dev' if peer.is_test_dev else 'val'}",
                "beside": f"{peer.compared_with} ({PUBLISHED_AP[peer.compared_with]} test-dev)",
                "params M": peer.parameters,
                "params over ours": times(_ratio(peer.parameters, parameters / 1e6)),
                "printed params ratio": times(peer.parameters_ratio),
                "GMAC": peer.multiply_adds,
                "GMAC over ours": times(_ratio(peer.multiply_adds, multiply_adds / 1e9)),
                "printed GMAC ratio": times(peer.multiply_adds_ratio),
                "time (published)": _published_time(peer),
            }
        )
    return rows


def _ratio(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _published_time(peer: Peer) -> str:
    """The paper's own times of the peer and of ours beside it."""
    ours = PAPER_LATENCY[peer.compared_with]
    pairs = [
        (peer.titan_v_ms, ours.titan_v_ms, "ms Titan V"),
        (peer.v100_ms, ours.v100_ms, "ms V100"),
        (peer.cpu_s, ours.cpu_s, "s CPU"),
    ]
    shown = [f"{theirs:g} : {own:g} {unit}" for theirs, own, unit in pairs if theirs is not None and own is not None]
    return "; ".join(shown) or "-"


def _peers(specs: Sequence[ModelSpec]) -> str:
    rows = peer_rows(specs)
    if not rows:
        return ""
    odd = [text for peer in PEERS if any(spec.name == peer.compared_with for spec in specs) for text in _odd(peer)]
    remarks = "\n".join(f"- {text}" for text in odd)
    return (
        "### Peers\n\nWhat the paper published of other detectors, over what this code counts for ours. Times are the "
        "paper's: peer : ours. Those on a V100 are of detectron2 against float16, pre- and post-processing included, "
        "so they compare two programs rather than two networks.\n\n" + table(rows)
        + (f"\nWhere the paper's own figures give another ratio than it prints:\n\n{remarks}\n" if odd else "")
    )  # fmt: skip


def _odd(peer: Peer) -> list[str]:
    """Sentences about ratios that the published figures do not give, rounding aside."""
    texts = []
    published_parameters, published_multiply_adds = PUBLISHED[peer.compared_with]
    for what, value, ratio, unit, letter in (
        ("parameters", peer.parameters, peer.parameters_ratio, published_parameters / 1e6, "M"),
        ("multiply-adds", peer.multiply_adds, peer.multiply_adds_ratio, published_multiply_adds / 1e9, "B"),
    ):
        if value is not None and ratio is not None and abs(value / unit / ratio - 1) > ROUNDING:
            texts.append(
                f"{peer.name}, {what}: {value:g}{letter} over {unit:.3g}{letter} is {times(value / unit)}; "
                f"printed is {times(ratio)}."
            )
    return texts


def _latency(out: Path, specs: Sequence[ModelSpec], latencies: Mapping[str, Spread], where: str, largest: str) -> str:
    costs = {spec.name: count(spec)[1] / 1e9 for spec in specs}
    base = "d0" if "d0" in latencies else next(iter(latencies), "")
    relative = (
        relative_time_per_multiply_add({name: t.median for name, t in latencies.items()}, costs, base) if base else {}
    )
    rows = [
        {
            "model": spec.name,
            "GMAC": round(costs[spec.name], 2),
            "ms": str(latencies[spec.name]) if spec.name in latencies else "not measured",
            "ms per GMAC": round(latencies[spec.name].median / costs[spec.name], 2) if spec.name in latencies else None,
            f"over {base}'s": round(relative[spec.name], 2) if spec.name in relative else None,
        }
        for spec in specs
    ]
    text = (
        f"### Latency on this machine\n\n{where}. One forward pass of the plain PyTorch network, float32, batch 1, "
        "channels_last, without decoding and suppression: median of the passes after the first, in brackets the least "
        f"and the largest. Models that cost more than {largest} are not measured (`--latency-up-to`). The last column "
        f"is time over multiply-adds, relative to {base}: 1 is proportional.\n\n" + table(rows)
    )
    if len(relative) > 1:
        figures.save(_latency_picture(latencies, costs, base, where), out / "latency_over_multiply_adds")
        text += f"\n{_verdict(relative, base)}\n\n![Latency over multiply-adds](latency_over_multiply_adds.png)\n"
    return text


def _verdict(relative: Mapping[str, float], base: str) -> str:
    """A sentence about the series of the base alone: lite has cheaper activations and no squeeze-and-excitation."""
    is_lite = base.startswith("lite")
    series = {name: ratio for name, ratio in relative.items() if name.startswith("lite") is is_lite and name != base}
    if not series:
        return f"No other model of {base}'s series was measured."
    outside = [f"{name} ({ratio:.2f})" for name, ratio in series.items() if abs(ratio - 1) > PROPORTIONAL]
    if not outside:
        return f"Of {', '.join(series)}, each is within {PROPORTIONAL:.0%} of proportional to {base}."
    return f"Of {', '.join(series)}, beyond {PROPORTIONAL:.0%} of proportional to {base}: {', '.join(outside)}."


def _latency_picture(latencies: Mapping[str, Spread], costs: Mapping[str, float], base: str, where: str) -> Any:
    series = []
    for name, is_lite, color in (("EfficientDet", False, figures.BLUE), ("EfficientDet-Lite", True, figures.TEAL)):
        points = {
            key: (costs[key], value.median) for key, value in latencies.items() if key.startswith("lite") is is_lite
        }
        if points:
            series.append(figures.Series(name, points, color, is_line=True))
    proportional = PowerFit(1.0, latencies[base].median / costs[base], 1.0)
    return figures.labeled_points(
        f"Latency over multiply-adds\n{where}", "multiply-adds, 10⁹", "ms, one forward pass, batch 1", series,
        is_log=(True, True), guide=proportional, guide_name=f"proportional to {base}",
    )  # fmt: skip
