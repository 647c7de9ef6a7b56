"""What must hold of the measured ratios, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import growth

if TYPE_CHECKING:
    from report import Result, SideResult


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
    return makers[result.task](result)


def _at_least(text: str, our: SideResult, peer: SideResult, least: float) -> Claim:
    """The peer takes so many times as long, in the median of the rounds."""
    rounds = zip(our.round_medians(), peer.round_medians(), strict=True)
    ratio = median(theirs / own for own, theirs in rounds)
    return Claim(f"{text}: at least {least:g} times as fast", f"{ratio:.2f}", ratio >= least)


def _share(text: str, share: float, most: float) -> Claim:
    return Claim(f"{text}: at most {100 * most:g} %", f"{100 * share:.1f} %", share <= most)


def _find(result: Result, label: str) -> SideResult | None:
    """The side with a label, if it was measured."""
    return next((side for side in result.sides if side.label == label), None)


def _peer(result: Result, group: str) -> SideResult | None:
    return next((side for side in result.sides if side.is_peer and side.group == group), None)


def _best(result: Result) -> tuple[SideResult, SideResult] | None:
    """The fastest of ours and of the peers; none that is rectangular, which costs accuracy."""
    whole = [side for side in result.sides if "rectangular" not in side.label]
    ours, peers = ([side for side in whole if side.is_peer is is_peer] for is_peer in (False, True))
    if not ours or not peers:
        return None
    return min(ours, key=lambda side: median(side.times())), min(peers, key=lambda side: median(side.times()))


def _train(result: Result) -> list[Claim]:
    best = _best(result)
    if best is None:
        return []
    our, peer = best
    found = [_at_least(f"a training step, {our.label} : {peer.label}", our, peer, 1.5)]
    if our.peak_mib and peer.peak_mib:
        text = f"peak memory no higher, {our.label} : {peer.label}"
        found.append(Claim(text, f"{our.peak_mib:.0f} : {peer.peak_mib:.0f} MiB", our.peak_mib <= peer.peak_mib))
    return found


def _predict(result: Result) -> list[Claim]:
    found = []
    for label in ("efficientdet auto", "efficientdet auto, rectangular"):
        our = _find(result, label)
        if our is None:
            continue
        for group, what, least in (("eager", "effdet in its best layout", 3.2), ("onnxruntime", "effdet's in ONNX", 2)):
            peer = _peer(result, group)
            if peer is not None:
                found.append(_at_least(f"file to boxes, {label} : {what}", our, peer, least))
        if "rectangular" not in label:  # whose network has less to do
            found.append(_share(f"everything but the network, {label}", our.other_share(), 0.15))
    return found


def _reduced(result: Result) -> list[Claim]:
    best = _best(result)
    if best is None:
        return []
    our, peer = best
    return [_at_least(f"file to boxes, {result.settings['model']}, {our.label} : {peer.label}", our, peer, 5)]


def _postprocess(result: Result) -> list[Claim]:
    network = _find(result, "efficientdet, the network")
    found = []
    for score, most in ((0.05, 0.10), (0.001, 0.35)):
        our = _find(result, f"efficientdet hard, scores >= {score}")
        if our is None:
            continue
        if network is not None:
            rounds = zip(our.round_medians(), network.round_medians(), strict=True)
            share = median(own / whole for own, whole in rounds)
            found.append(_share(f"of the network's time, scores >= {score}", share, most))
        for nms, least in (("hard", 5), ("soft", 50)):
            one, peer = _find(result, f"efficientdet {nms}, scores >= {score}"), _peer(result, nms)
            if one is not None and peer is not None:
                found.append(_at_least(f"{nms} suppression, scores >= {score} : effdet", one, peer, least))
    return found


def _growth(result: Result) -> list[Claim]:
    return [
        Claim(
            f"{point.name}: time for a GMAC within {100 * growth.TOLERANCE:.0f} % of {result.sides[0].label}'s",
            f"{median(point.ratios):.2f} times", growth.is_proportional(point),
        )
        for point in growth.points(result)[1:]
    ]  # fmt: skip


def _folder(result: Result) -> list[Claim]:
    found = []
    for side in result.sides:
        share = median(own / whole for own, whole in zip(side.times("network"), side.times(), strict=True))
        text = f"{side.label}, {result.settings['pictures']} pictures: at least 90 % of the network's own throughput"
        found.append(Claim(text, f"{100 * share:.1f} %", share >= 0.9))
    return found
