"""From measured times to the tables of BENCHMARKS.md."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import claims
import growth
from cases import NUM_CLASSES, Side

from efficientdet.atomic_write import write_text
from efficientdet.research.benchmark.hardware import Hardware
from efficientdet.research.benchmark.results import Spread
from efficientdet.research.benchmark.steps import PARTS

# How far the two sides may lie apart: float32 along two orders of summation.
SCORE_TOLERANCE = 1e-3
PIXEL_TOLERANCE = 0.5
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
FROM_FILES = ("predict", "reduced")
DRAWING = Path("benchmarks") / "growth.svg"


@dataclass(frozen=True)
class SideResult:
    """What one side measured: rounds of iterations, each milliseconds by part."""

    label: str
    side: Side
    rounds: list[list[dict[str, float]]]
    peak_mib: float | None
    facts: dict[str, Any]

    @property
    def is_peer(self) -> bool:
        """Whether it is effdet."""
        return self.side.is_peer

    @property
    def group(self) -> str:
        """See `cases.Side`."""
        return self.side.group

    def times(self, part: str = "total") -> list[float]:
        """Every iteration's milliseconds in a part."""
        return [times.get(part, 0.0) for one in self.rounds for times in one]

    def round_medians(self, part: str = "total") -> list[float]:
        """Median milliseconds of each round in a part."""
        return [median(times.get(part, 0.0) for times in one) for one in self.rounds]

    def other_share(self) -> float:
        """Of the time, what is not the network's."""
        parts = {part: median(self.times(part)) for part in PARTS}
        return 1 - parts["network"] / sum(parts.values())


@dataclass(frozen=True)
class Result:
    """A case's sides, measured in turns."""

    task: str
    title: str
    settings: dict[str, Any]
    notes: list[str]
    sides: list[SideResult]
    num_classes: int = NUM_CLASSES

    def pairs(self) -> list[tuple[SideResult, SideResult]]:
        """Ours beside the peers it is compared to; in training also the fastest beside the fastest."""
        ours, peers = ([s for s in self.sides if s.is_peer is is_peer] for is_peer in (False, True))
        pairs = [(our, peer) for our in ours for peer in peers if peer.group in (our.group, *our.side.beside)]
        if self.task == "train" and ours and peers:
            best = tuple(min(part, key=lambda side: median(side.times())) for part in (ours, peers))
            if best not in pairs:
                pairs.append((best[0], best[1]))
        return pairs


@dataclass(frozen=True)
class Check:
    """Whether the two sides computed the same."""

    text: str
    agrees: bool


def ratios(our: SideResult, peer: SideResult) -> list[float]:
    """The peer's time over ours, by round."""
    return [theirs / own for own, theirs in zip(our.round_medians(), peer.round_medians(), strict=True)]


def checks(result: Result) -> list[Check]:
    """Compare what the two sides computed before they were measured."""
    compare = _compare_losses if result.task == "train" else _compare_detections
    return [compare(our, peer) for our, peer in result.pairs() if our.group == peer.group and our.side.is_same]


def _compare_losses(our: SideResult, peer: SideResult) -> Check:
    ours, theirs = our.facts["loss"], peer.facts["loss"]
    agrees = abs(ours - theirs) <= LOSS_TOLERANCE[our.group] * abs(theirs)
    text = f"{our.group}: loss of the first step {ours:.6g}, effdet {theirs:.6g}"
    return Check(text + ("" if agrees else " **differ**"), agrees)


def _compare_detections(our: SideResult, peer: SideResult) -> Check:
    """Each detection of the peer, but those under our score threshold, must be among ours."""
    ours = our.facts["detections"]
    threshold = our.facts["score_threshold"]
    theirs = [row for row in peer.facts["detections"] if row[4] >= threshold]
    found, pixels, scores = 0, 0.0, 0.0
    for *box, score, label in theirs:
        apart = [
            (max(abs(a - b) for a, b in zip(box, row, strict=False)), abs(score - row[4]))
            for row in ours
            if row[5] == label
        ]
        near = min(apart, default=(float("inf"), 1.0))
        if near[0] <= PIXEL_TOLERANCE and near[1] <= SCORE_TOLERANCE:
            found, pixels, scores = found + 1, max(pixels, near[0]), max(scores, near[1])
    # A score at the threshold or at the cut to 100 may fall on either side.
    agrees = bool(theirs) and found >= 0.98 * len(theirs) and abs(len(ours) - len(theirs)) <= 0.02 * len(theirs) + 1
    text = (
        f"{our.label}: {found} of effdet's {len(theirs)} detections are among our {len(ours)}, "
        f"to {pixels:.2g} pixels and {scores:.2g} in score"
    )
    return Check(text + ("" if agrees else " **differ**"), agrees)


def spread(values: list[float], digits: int) -> str:
    """Median, least and largest."""
    return Spread.of(values).text(digits)


def table(rows: list[list[str]]) -> str:
    """Markdown, the first row its head; all columns but the first are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines)


def _memory(side: SideResult) -> str:
    return f"{side.peak_mib:.0f}" if side.peak_mib else "-"


def _times_table(result: Result) -> str:
    if result.task in FROM_FILES:
        return table([["side", "total, ms", *PARTS, "all but the network", "peak memory, MiB"], *_part_rows(result)])
    if result.task == "growth":
        rows = [
            [p.name, f"{p.gmac:.2f}", f"{p.milliseconds:.1f}", f"{p.milliseconds / p.gmac:.1f}", spread(p.ratios, 2)]
            for p in growth.points(result)
        ]
        memory = [_memory(side) for side in result.sides]
        head = ["model", "GMAC", "ms", "ms a GMAC", "over the first model's", "peak memory, MiB"]
        return table([head, *([*row, peak] for row, peak in zip(rows, memory, strict=True))])
    if result.task == "folder":
        count = result.settings["pictures"]
        rows = [
            [
                f"{side.label} ({side.facts['backend']})",
                *(f"{1000 * count / median(side.times(part)):.1f}" for part in ("total", "network")), _memory(side),
            ]
            for side in result.sides
        ]  # fmt: skip
        return table([["side", "images/s", "the network's own images/s", "peak memory, MiB"], *rows])
    digits = 0 if result.task == "train" else 2
    pictures = result.settings["batch"]
    rows = [
        [side.label, f"{1000 * pictures / median(side.times()):.2f}", spread(side.times(), digits), _memory(side)]
        for side in result.sides
    ]
    if result.task == "postprocess":
        return table([["side", "ms", "peak memory, MiB"], *([row[0], *row[2:]] for row in rows)])
    return table([["side", "images/s", "ms a step", "peak memory, MiB"], *rows])


def _part_rows(result: Result) -> list[list[str]]:
    rows = []
    for side in result.sides:
        numbers = [f"{median(side.times(part)):.1f}" for part in PARTS]
        engine = "" if side.is_peer else f" ({side.facts['backend']} {side.facts['precision']})"
        share = f"{100 * side.other_share():.0f} %"
        rows.append([side.label + engine, spread(side.times(), 1), *numbers, share, _memory(side)])
    return rows


def _ratios_table(result: Result) -> str:
    rows = [["this package is faster by", "ratio, median of rounds"]]
    rows += [[f"{our.label} : {peer.label}", spread(ratios(our, peer), 2)] for our, peer in result.pairs()]
    return table(rows) if len(rows) > 1 else ""


def _versions(results: list[Result]) -> str:
    seen: dict[str, None] = {}
    for side in (side for result in results for side in result.sides):
        versions = ", ".join(f"{name} {version}" for name, version in side.facts.get("versions", {}).items())
        seen[f"{versions}, {side.facts['threads']} threads"] = None
    return "; ".join(seen)


def sections(results: list[Result], machine: Hardware, command: str, out: Path | None) -> dict[str, str]:
    """The report of each task, in Markdown; the drawing that it shows is written beside the file `out`."""
    texts = {}
    engines = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    for task in dict.fromkeys(result.task for result in results):
        own = [result for result in results if result.task == task]
        where = f"`{command}`, {date.today().isoformat()}, on {machine.describe()}. {_versions(own)}; {engines}."
        parts = [where]
        for result in own:
            parts += [f"### {result.title}", _times_table(result), _ratios_table(result)]
            parts += [f"Before the rounds: {'; '.join(result.notes)}."] if result.notes else []
            same = "\n".join(f"- {check.text}" for check in checks(result))
            parts += [f"The same work on both sides:\n\n{same}"] if same else []
            if task == "growth" and out is not None:
                write_text(out.parent / DRAWING, growth.draw(growth.points(result)))
                parts.append(f"![Time over multiply-adds; dashed: 30 % off proportional]({DRAWING.as_posix()})")
            rows = [[claim.text, claim.measured, "yes" if claim.holds else "**no**"] for claim in claims.claims(result)]
            parts += [table([["what must hold", "measured", "holds"], *rows])] if rows else []
        texts[task] = "\n\n".join(part for part in parts if part)
    return texts


def write(path: Path, texts: dict[str, str]) -> None:
    """Put each task's text between its markers, and keep the rest of the file; missing markers are added at the end."""
    page = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    for task, text in texts.items():
        start, end = f"<!-- bench:{task} -->", f"<!-- /bench:{task} -->"
        block = f"{start}\n{text}\n{end}"
        if start in page and end in page:
            before, after = page.split(start, 1)[0], page.split(end, 1)[1]
            page = before + block + after
        else:
            page = f"{page.rstrip()}\n\n{block}\n"
    write_text(path, page)
