"""From results to the sections of BENCHMARKS.md."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from statistics import median

import claims
import growth
from results import PARTS, Result, SideResult, ratios

from efficientdet.atomic_write import write_text
from efficientdet.inference.benchmark import Spread
from efficientdet.inference.hardware import Hardware

CHART = Path("benchmarks") / "growth.svg"


def spread(values: list[float], digits: int) -> str:
    """Median, smallest and largest."""
    return Spread.of(values).text(digits)


def table(rows: list[list[str]]) -> str:
    """Markdown, the first row its head; all columns but the first are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines)


def section(results: list[Result], machine: Hardware, command: str, is_quick: bool = False) -> str:
    """A section of the report, in Markdown.

    Args:
        results: the cases of the section.
        machine: where they were measured; its processor stands beside each table.
        command: what was run.
        is_quick: whether inputs were small: then there is nothing that must hold, and nothing to compare with.
    """
    flags = () if is_quick else machine.flags
    parts = [f"`{command}`, {date.today().isoformat()}, on {machine}. {_versions(results, machine)}."]
    for result in results:
        parts += [f"### {result.title}", f"On {machine.cpu} ({', '.join(machine.flags)}), {machine.cores} cores:"]
        parts += [table(result.table or _times_table(result)), _ratios_table(result, flags)]
        parts += [" ".join(claims.below_former(result, flags))]
        parts += [f"Before the rounds: {'; '.join(result.notes)}."] if result.notes else []
        if result.checks:
            parts.append("The same on both sides:\n\n" + "\n".join(f"- {check.text}" for check in result.checks))
        if result.task == "growth":
            parts.append(f"![Time over multiply-adds; dotted: 30 % off proportional]({CHART.as_posix()})")
        aims = [] if is_quick else claims.claims(result)
        rows = [[claim.text, claim.measured, "yes" if claim.holds else "**no**"] for claim in aims]
        parts += [table([["what must hold", "measured", "holds"], *rows])] if rows else []
    return "\n\n".join(part for part in parts if part)


def _versions(results: list[Result], machine: Hardware) -> str:
    seen = dict.fromkeys([_list(machine.versions)])
    for side in (side for result in results for side in result.sides if "threads" in side.facts):
        versions = side.facts["versions"] if side.is_peer else machine.versions
        seen.pop(_list(versions), None)
        seen[f"{_list(versions)}, {side.facts['threads']} threads"] = None
    return "; ".join(seen)


def _list(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _memory(side: SideResult) -> str:
    return f"{side.peak_mib:.0f}" if side.peak_mib else "-"


def _name(side: SideResult) -> str:
    return f"{side.label} ({side.facts['engine']})" if "engine" in side.facts else side.label


def _times_table(result: Result) -> list[list[str]]:
    if result.task in ("predict", "reduced"):
        rows = [["side", "total, ms", *PARTS, "all but the network", "peak memory, MiB"]]
        for side in result.sides:
            medians = [median(side.times(part)) for part in PARTS]
            share = f"{1 - medians[PARTS.index('network')] / sum(medians):.0%}"
            numbers = [f"{one:.1f}" for one in medians]
            rows.append([_name(side), spread(side.times(), 1), *numbers, share, _memory(side)])
        return rows
    if result.task == "growth":
        rows = [["model", "GMAC", "ms", "ms a GMAC", "over the first model's", "peak memory, MiB"]]
        for point, side in zip(growth.points(result), result.sides, strict=True):
            numbers = [f"{point.gmac:.2f}", f"{point.milliseconds:.1f}", f"{point.milliseconds / point.gmac:.1f}"]
            rows.append([point.name, *numbers, spread(point.ratios, 2), _memory(side)])
        return rows
    if result.task == "folder":
        rows = [["side", "images/s", "the network's own images/s", "peak memory, MiB"]]
        for side in result.sides:
            rates = [f"{1000 * result.images / median(side.times(part)):.1f}" for part in ("total", "network")]
            rows.append([_name(side), *rates, _memory(side)])
        return rows
    if result.task == "postprocess":
        rows = [["side", "ms", "peak memory, MiB"]]
        return rows + [[side.label, spread(side.times(), 2), _memory(side)] for side in result.sides]
    rows = [["side", "images/s", "ms a step", "peak memory, MiB"]]
    for side in result.sides:
        rate = f"{1000 * result.images / median(side.times()):.2f}"
        rows.append([side.label, rate, spread(side.times(), 0), _memory(side)])
    return rows


def _ratios_table(result: Result, flags: tuple[str, ...]) -> str:
    rows = [["effdet's time over this package's", "median of rounds", "before, on such a processor"]]
    for our, peer in result.pairs():
        if our.rounds and peer.rounds:
            former = claims.former_ratio(result, our, peer, flags)
            shown = "-" if former is None else f"{former:.2f}"
            rows.append([f"{our.label} : {peer.label}", spread(ratios(our, peer), 2), shown])
    return table(rows) if len(rows) > 1 else ""


def write(path: Path, task: str, text: str, results: list[Result]) -> None:
    """Put a section between its markers, and keep the rest of the file; missing markers are added at the end."""
    if task == "growth":
        growth.draw(growth.points(results[0]), path.parent / CHART)
    page = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    start, end = f"<!-- bench:{task} -->", f"<!-- /bench:{task} -->"
    block = f"{start}\n{text}\n{end}"
    if start in page and end in page:
        page = page.split(start, 1)[0] + block + page.split(end, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n{block}\n"
    write_text(path, page)
