"""From made-up times to the report: tables, ratios, what must hold, and what was measured before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import growth
import pytest
import report
from cases import CASES, Side
from checks import Check
from claims import FORMER, below_former, claims
from results import PARTS, Result, SideResult

from efficientdet.inference.hardware import Hardware

MACHINE = dataclasses.replace(
    Hardware.read(), cpu="Abacus 9", flags=("avx2", "avx512f"), load=0.0, versions={"efficientdet": "1", "torch": "2"}
)


def side(label: str, times: list[float], is_peer: bool = False, group: str = "eager", **facts: Any) -> SideResult:
    rounds = [[{**dict.fromkeys(PARTS, time / 10), "network": 0.7 * time, "total": time}] for time in times]
    facts = {"threads": 2, "versions": {"effdet": "0.4.1"}, **facts}
    return SideResult(Side(label, "peer" if is_peer else "ours", group=group), rounds, 500.0, facts)


def predicting(ours: list[float], peer: list[float]) -> Result:
    sides = [side("efficientdet auto", ours, engine="openvino fp32"), side("effdet channels_last", peer, is_peer=True)]
    return Result("predict", "From a JPEG to boxes", "d0", 90, 512, 1, sides, checks=[Check("all the same", True)])


def test_a_section_names_the_processor_beside_each_table_and_gives_ratios_round_by_round() -> None:
    # The machine slowed down threefold in the second round: the ratios do not show it.
    text = report.section([predicting([10, 30, 10], [40, 120, 40])], MACHINE, "python benchmarks/run.py")
    assert "On Abacus 9 (avx2, avx512f)" in text
    assert "| efficientdet auto : effdet channels_last | 4.00 (4.00-4.00) | 3.29 |" in text
    assert "| efficientdet auto (openvino fp32) | 10.0 (10.0-30.0) | 1.0 | 1.0 | 7.0 | 1.0 | 30% | 500 |" in text
    assert "efficientdet 1, torch 2, 2 threads; effdet 0.4.1, 2 threads" in text
    assert "- all the same" in text
    assert "| efficientdet auto : effdet channels_last: at least 3.2 | 4.00 | yes |" in text
    assert "below the" not in text


def test_a_ratio_below_the_former_one_is_said_in_words() -> None:
    (line,) = below_former(predicting([10, 10, 10], [30, 31, 34]), ("avx2", "avx512f"))
    assert "is 3.10, below the 3.29 measured before" in line and "within the range of the rounds, 3.00-3.40" in line
    assert not below_former(predicting([10], [30]), ("avx2",))  # another kind of processor: 2.95
    (line,) = below_former(predicting([10], [29]), ("avx2",))
    assert "2.90, below the 2.95" in line and "outside the range" in line
    assert not below_former(predicting([10], [20]), ("asimd",))  # nothing was measured there
    text = report.section([predicting([10], [31])], MACHINE, "command")
    assert "is 3.10, below the 3.29" in text and "**no**" in text


def test_a_quick_run_claims_nothing() -> None:
    text = report.section([predicting([10], [20])], MACHINE, "command", is_quick=True)
    assert "must hold" not in text and "below the" not in text and "| - |" in text


def test_what_was_measured_before_is_of_sides_that_are_still_measured() -> None:
    known = {(case.task, case.network, one.label) for case in CASES for one in case.sides}
    assert {key[:3] for figures in FORMER.values() for key in figures} <= known


def test_the_time_outside_the_network_and_training_memory_are_claims() -> None:
    (least, share) = claims(predicting([10], [40]))
    assert least.holds and share.measured == "30.0%" and not share.holds
    sides = [side("efficientdet fp32", [10]), side("effdet fp32", [20], is_peer=True)]
    training = Result("train", "Training step", "d0", 90, 512, 4, sides)
    assert [claim.holds for claim in claims(training)] == [True, True]
    text = report.section([training], MACHINE, "command")
    assert "| efficientdet fp32 | 400.00 | 10 (10-10) | 500 |" in text


def test_growth_is_drawn_and_held_to_proportion(tmp_path: Path) -> None:
    sides = [side(name, [time], size=512, num_classes=90) for name, time in (("d0", 10.0), ("d1", 10.0))]
    result = Result("growth", "The network alone", "d0", 90, 512, 1, sides)
    first, second = growth.points(result)
    assert (first.ratios, growth.is_proportional(first)) == ([1.0], True)
    assert second.gmac == pytest.approx(first.gmac * 1.53, rel=0.05) and not growth.is_proportional(second)
    report.write(tmp_path / "BENCHMARKS.md", "growth", "text", [result])
    assert "<svg" in (tmp_path / report.CHART).read_text()


def test_a_section_replaces_what_stands_between_its_markers_alone(tmp_path: Path) -> None:
    page = tmp_path / "BENCHMARKS.md"
    page.write_text("# Page\n<!-- bench:predict -->\nold\n<!-- /bench:predict -->\nkept\n")
    report.write(page, "predict", "new", [])
    report.write(page, "start", "started", [])
    assert page.read_text() == (
        "# Page\n<!-- bench:predict -->\nnew\n<!-- /bench:predict -->\nkept\n\n"
        "<!-- bench:start -->\nstarted\n<!-- /bench:start -->\n"
    )
