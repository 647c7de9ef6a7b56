"""From measured times to the tables of BENCHMARKS.md. Standard library only."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

PARTS = ("decode", "preprocess", "network", "postprocess")
# How far the two sides may lie apart: float32 along two orders of summation.
SCORE_TOLERANCE = 1e-3
PIXEL_TOLERANCE = 0.5
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


@dataclass(frozen=True)
class SideResult:
    """What one side measured: rounds of iterations, each milliseconds by part."""

    label: str
    is_peer: bool
    group: str
    rounds: list[list[dict[str, float]]]
    peak_mib: float | None
    facts: dict[str, Any]

    def times(self, part: str = "total") -> list[float]:
        """Every iteration's milliseconds in a part."""
        return [times.get(part, 0.0) for one in self.rounds for times in one]

    def round_totals(self) -> list[float]:
        """Median total of each round."""
        return [median(times["total"] for times in one) for one in self.rounds]


@dataclass(frozen=True)
class Result:
    """A case's sides, measured in turns."""

    task: str
    title: str
    notes: list[str]
    pictures: int
    sides: list[SideResult]

    def pairs(self) -> list[tuple[SideResult, SideResult]]:
        """Ours beside the peer of the same group; and the fastest beside the fastest, where that is another pair."""
        ours, peers = ([s for s in self.sides if s.is_peer is is_peer] for is_peer in (False, True))
        pairs = [(our, peer) for our in ours for peer in peers if our.group == peer.group]
        if ours and peers and len({side.group for side in self.sides}) > 1:
            best = tuple(min(part, key=lambda side: median(side.times())) for part in (ours, peers))
            if best not in pairs:
                pairs.append((best[0], best[1]))
        return pairs


@dataclass(frozen=True)
class Check:
    """Whether the two sides computed the same."""

    text: str
    agrees: bool


@dataclass(frozen=True)
class Machine:
    """Where it ran."""

    cpu: str
    cores: int
    features: str
    memory_gib: float | None
    system: str
    load: float

    @classmethod
    def read(cls) -> Machine:
        """Ask the system."""
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.exists() else ""
        name, flags_line = (re.search(rf"^{key}\s*:\s*(.+)", text, re.MULTILINE) for key in ("model name", "flags"))
        flags = flags_line.group(1).split() if flags_line else []
        shown = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if flag in flags]
        memory = None
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return cls(
            cpu=name.group(1) if name else platform.processor() or platform.machine(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            features=", ".join(shown),
            memory_gib=memory,
            system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            load=load,
        )

    def is_busy(self) -> bool:
        """Whether others were at work when the run began."""
        return self.load > 0.3 * self.cores

    def describe(self) -> str:
        """One line."""
        memory = f", {self.memory_gib:.0f} GiB" if self.memory_gib else ""
        features = f" ({self.features})" if self.features else ""
        busy = f"; **the machine was busy, load {self.load:.1f}**" if self.is_busy() else ""
        return f"{self.cpu}{features}, {self.cores} cores{memory}; {self.system}{busy}"


def checks(result: Result) -> list[Check]:
    """Compare what the two sides computed before they were measured."""
    compare = _compare_losses if result.task == "train" else _compare_detections
    return [compare(our, peer) for our, peer in result.pairs() if our.group == peer.group]


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
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(rows: list[list[str]]) -> str:
    """Markdown, the first row its head; all columns but the first are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines)


def _times_table(result: Result) -> str:
    memory = [f"{side.peak_mib:.0f}" if side.peak_mib else "-" for side in result.sides]
    if result.task == "train":
        head = ["side", "images/s", "ms a step", "peak memory, MiB"]
        rows = [
            [side.label, f"{1000 * result.pictures / median(side.times()):.2f}", spread(side.times(), 0), peak]
            for side, peak in zip(result.sides, memory, strict=True)
        ]
        return table([head, *rows])
    head = ["side", "total, ms", *PARTS, "rest", "all but the network", "peak memory, MiB"]
    rows = []
    for side, peak in zip(result.sides, memory, strict=True):
        parts = [median(side.times(part)) for part in PARTS]
        share = 1 - median(n / t for n, t in zip(side.times("network"), side.times(), strict=True))
        columns = zip(side.times(), *(side.times(part) for part in PARTS), strict=True)
        rest = median(whole - sum(measured) for whole, *measured in columns)
        numbers = [f"{value:.1f}" for value in (*parts, rest)]
        rows.append([side.label, spread(side.times(), 1), *numbers, f"{100 * share:.0f} %", peak])
    return table([head, *rows])


def _ratios_table(result: Result) -> str:
    rows = [["this package is faster by", "ratio, median of rounds"]]
    for our, peer in result.pairs():
        ratios = [theirs / ours for ours, theirs in zip(our.round_totals(), peer.round_totals(), strict=True)]
        rows.append([f"{our.label} : {peer.label}", spread(ratios, 2)])
    return table(rows) if len(rows) > 1 else "The peer was not measured."


def _versions(results: list[Result]) -> str:
    seen: dict[str, None] = {}
    for side in (side for result in results for side in result.sides):
        versions = ", ".join(f"{name} {version}" for name, version in side.facts["versions"].items())
        seen[f"{versions}, {side.facts['threads']} threads"] = None
    return "; ".join(seen)


def sections(results: list[Result], machine: Machine, command: str) -> dict[str, str]:
    """The report of each task, in Markdown."""
    texts = {}
    for task in dict.fromkeys(result.task for result in results):
        own = [result for result in results if result.task == task]
        parts = [f"`{command}`, {date.today().isoformat()}, on {machine.describe()}. {_versions(own)}."]
        for result in own:
            parts += [f"### {result.title}", _times_table(result), _ratios_table(result)]
            parts += [f"The race that chose effdet's variant: {'; '.join(result.notes)}."] if result.notes else []
            same = "\n".join(f"- {check.text}" for check in checks(result))
            parts += [f"The same work on both sides:\n\n{same}"] if same else []
        texts[task] = "\n\n".join(parts)
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
    path.write_text(page, encoding="utf-8")
