"""What must hold of the measured ratios, whether it does, and what was measured before on such a processor."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import growth
from results import PARTS, Result, SideResult, fastest, ratios

# What an instruction set of the processor was measured with on 2026-11-24: the ratios of that report, by section,
# network, our side and the peer's. On processors with AVX2 alone only the first was measured.
FORMER = {
    "avx512f": {
        ("train", "d0", "efficientdet fp32, channels_last", "fp32"): 1.51,
        ("train", "d0", "efficientdet bf16, channels_last", "bf16"): 2.20,
        ("train", "d0", "efficientdet bf16, channels_last", "fp32"): 2.01,
        ("train", "lite0", "efficientdet fp32, channels_last", "fp32"): 1.72,
        ("train", "lite0", "efficientdet bf16, channels_last", "bf16"): 2.28,
        ("train", "lite0", "efficientdet bf16, channels_last", "fp32"): 2.06,
        ("predict", "d0", "efficientdet auto", "eager"): 3.29,
        ("predict", "d0", "efficientdet auto", "onnxruntime"): 2.74,
        ("predict", "d0", "efficientdet auto, rectangular", "eager"): 4.16,
        ("predict", "d0", "efficientdet auto, rectangular", "onnxruntime"): 3.47,
        ("predict", "d0", "efficientdet eager", "eager"): 1.79,
        ("reduced", "d0", "efficientdet openvino bf16", "eager"): 5.18,
        ("reduced", "d0", "efficientdet openvino bf16, rectangular", "eager"): 6.35,
        ("reduced", "d0", "efficientdet openvino int8", "eager"): 5.79,
        ("reduced", "lite0", "efficientdet openvino bf16", "eager"): 4.45,
        ("reduced", "lite0", "efficientdet openvino bf16, rectangular", "eager"): 4.78,
        ("reduced", "lite0", "efficientdet openvino int8", "eager"): 5.06,
        ("postprocess", "d0", "efficientdet hard, scores >= 0.05", "hard"): 17.93,
        ("postprocess", "d0", "efficientdet hard, scores >= 0.001", "hard"): 10.59,
        ("postprocess", "d0", "efficientdet soft, scores >= 0.05", "soft"): 244.49,
        ("postprocess", "d0", "efficientdet soft, scores >= 0.001", "soft"): 143.80,
    },
    "avx2": {("predict", "d0", "efficientdet auto", "eager"): 2.95},
}


class Claim(NamedTuple):
    """One thing that must hold."""

    text: str
    measured: str
    holds: bool


def claims(result: Result) -> list[Claim]:
    """Those of a case; none where what they compare was not measured."""
    makers: dict[str, Callable[[Result], list[Claim]]] = {
        "train": _train, "predict": _predict, "reduced": _reduced, "postprocess": _postprocess, "growth": _growth,
        "folder": _folder,
    }  # fmt: skip
    return makers[result.task](result) if result.task in makers else []


def former_ratio(result: Result, our: SideResult, peer: SideResult, flags: tuple[str, ...]) -> float | None:
    """What was measured before on a processor with the same instruction set; None where nothing was."""
    known = next((figures for flag, figures in FORMER.items() if flag in flags), {})
    return known.get((result.task, result.network, our.label, peer.group))


def below_former(result: Result, flags: tuple[str, ...]) -> list[str]:
    """A sentence for each ratio that is lower than before."""
    found = []
    for our, peer in result.pairs():
        former, values = former_ratio(result, our, peer, flags), ratios(our, peer)
        if former is not None and median(values) < former:
            inside = "within" if max(values) >= former else "outside"
            found.append(
                f"{our.label} : {peer.label} is {median(values):.2f}, below the {former:.2f} measured before on a "
                f"processor of this kind ({inside} the range of the rounds, {min(values):.2f}-{max(values):.2f})."
            )
    return found


def _at_least(text: str, our: SideResult, peer: SideResult, least: float) -> Claim:
    """The peer's time over ours, in the median of the rounds."""
    ratio = median(ratios(our, peer))
    return Claim(f"{text}: at least {least:g}", f"{ratio:.2f}", ratio >= least)


def _share(text: str, share: float, most: float) -> Claim:
    return Claim(f"{text}: at most {most:.0%}", f"{share:.1%}", share <= most)


def _best(result: Result) -> tuple[SideResult, SideResult] | None:
    """The fastest of ours and of the peers; none that is rectangular, which costs accuracy."""
    whole = [side for side in result.sides if "rectangular" not in side.label]
    ours, peers = ([side for side in whole if side.is_peer is is_peer] for is_peer in (False, True))
    return (fastest(ours), fastest(peers)) if ours and peers else None


def _train(result: Result) -> list[Claim]:
    best = _best(result)
    if best is None:
        return []
    our, peer = best
    found = [_at_least(f"{our.label} : {peer.label}", our, peer, 1.5)]
    if our.peak_mib and peer.peak_mib:
        text = f"peak memory, {our.label} : {peer.label}: no higher"
        found.append(Claim(text, f"{our.peak_mib:.0f} : {peer.peak_mib:.0f} MiB", our.peak_mib <= peer.peak_mib))
    return found


def _predict(result: Result) -> list[Claim]:
    if result.network != "d0":
        return []
    found = []
    for label in ("efficientdet auto", "efficientdet auto, rectangular"):
        our = result.find(label)
        for group, least in (("eager", 3.2), ("onnxruntime", 2)):
            peer = result.find_peer(group)
            if our is not None and peer is not None:
                found.append(_at_least(f"{label} : {peer.label}", our, peer, least))
    our = result.find("efficientdet auto")
    if our is not None:
        parts = {part: median(our.times(part)) for part in PARTS}
        others = 1 - parts["network"] / sum(parts.values())
        found.append(_share("efficientdet auto, share of the time outside the network", others, 0.15))
    return found


def _reduced(result: Result) -> list[Claim]:
    best = _best(result)
    if best is None or result.network == "people":
        return []
    return [_at_least(f"{best[0].label} : {best[1].label}", *best, 5)]


def _postprocess(result: Result) -> list[Claim]:
    network = result.find("efficientdet network")
    found = []
    for score, most in ((0.05, 0.10), (0.001, 0.35)):
        our = result.find(f"efficientdet hard, scores >= {score}")
        if our is not None and network is not None:
            share = median(1 / ratio for ratio in ratios(our, network))
            found.append(_share(f"share of the network's time, scores >= {score}", share, most))
        for nms, least in (("hard", 5), ("soft", 50)):
            one, peer = result.find(f"efficientdet {nms}, scores >= {score}"), result.find_peer(nms)
            if one is not None and peer is not None:
                found.append(_at_least(f"{one.label} : {peer.label}", one, peer, least))
    return found


def _growth(result: Result) -> list[Claim]:
    return [
        Claim(
            f"{point.name}: time for a GMAC within {growth.TOLERANCE:.0%} of {result.sides[0].label}'s",
            f"{median(point.ratios):.2f} of it", growth.is_proportional(point),
        )
        for point in growth.points(result)[1:]
    ]  # fmt: skip


def _folder(result: Result) -> list[Claim]:
    (side,) = result.sides
    share = median(own / whole for own, whole in zip(side.times("network"), side.times(), strict=True))
    return [Claim(f"{side.label}: at least 90% of the network's own throughput", f"{share:.1%}", share >= 0.9)]
