"""A section whose two sides do not compute the same is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run
from cases import Case, Side
from files import Files
from processes import SideError

PAGE = "# Benchmarks\n<!-- bench:{0} -->\nold {0}\n<!-- /bench:{0} -->\n"
ROWS = [[10.0 * i, 5.0, 10.0 * i + 8, 40.0, 0.9 - 0.01 * i, i % 3] for i in range(50)]


class FakeWorker:
    """A side that has found something already."""

    def __init__(self, label: str, facts: dict[str, Any], ms: float) -> None:
        self.label, self.facts, self.ms = label, facts, ms
        self.rounds: list[list[dict[str, float]]] = []
        self.peak_mib = 100.0

    def measure(self, iterations: int) -> float:
        self.rounds.append([{"total": self.ms, "network": self.ms / 2, "decode": 1.0}] * max(iterations, 1))
        return self.ms

    def round_medians(self) -> list[float]:
        return [self.ms] * len(self.rounds)

    def close(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Sides that need no process: those of effdet find what stands in the fixture's `found`."""
    state: dict[str, list[Any]] = {"found": ROWS, "measured": []}

    def start(self: run.Bench, side: Side, case: Case) -> FakeWorker:
        told = self._told(side, case)
        np.save(told["input_file"], np.zeros((3, told["size"], told["size"]), np.float32))
        rows = state["found"] if side.is_peer else ROWS
        facts = {
            "detections": [rows], "detections_as_shipped": [rows], "score_threshold": 0.05, "threads": 1,
            "engine": "fake fp32", "versions": {"effdet": "0"}, **{k: told[k] for k in ("size", "input_file")},
        }  # fmt: skip
        worker = FakeWorker(side.label, facts, 30.0 if side.is_peer else 10.0)
        state["measured"].append(worker)
        return worker

    monkeypatch.setattr(run.Bench, "_start", start)
    monkeypatch.setattr(run, "peer_python", lambda: "python")
    return state


def test_sections_whose_sides_agree_are_written(started: dict[str, list[Any]], tmp_path: Path) -> None:
    page = tmp_path / "BENCHMARKS.md"
    page.write_text(PAGE.format("predict"))
    assert run.main(["--only", "predict", "--quick", "--out", str(page)]) == 0
    assert "old predict" not in page.read_text()
    assert "50 of effdet's 50 detections are among our 50" in page.read_text()
    assert "| efficientdet auto : effdet channels_last | 3.00 (3.00-3.00) |" in page.read_text()


def test_a_section_whose_sides_differ_is_refused_before_it_is_measured(
    started: dict[str, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "BENCHMARKS.md"
    page.write_text(PAGE.format("predict") + PAGE.format("postprocess"))
    before = page.read_text()
    started["found"] = [[*(x + 3 for x in row[:4]), *row[4:]] for row in ROWS]
    assert run.main(["--only", "predict", "--only", "postprocess", "--quick", "--out", str(page)]) == 1
    assert page.read_text() == before
    said = capsys.readouterr()
    assert (
        "predict: not written: the two sides do not compute the same: efficientdet auto: 0 of effdet's 50" in said.err
    )
    assert "postprocess: not written" in said.err
    assert not said.out
    assert all(not worker.rounds for worker in started["measured"] if not worker.label.startswith("effdet"))


def test_a_section_with_one_case_that_differs_is_refused_as_a_whole(
    started: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "BENCHMARKS.md"
    page.write_text(PAGE.format("predict"))
    original, seen = run.Bench.run, list[str]()

    def second_differs(self: run.Bench, case: Case) -> Any:
        seen.append(case.network)
        started["found"] = ROWS if len(seen) == 1 else []
        return original(self, case)

    monkeypatch.setattr(run.Bench, "run", second_differs)
    assert run.main(["--only", "predict", "--quick", "--out", str(page)]) == 1
    assert seen == ["lite0", "people"]
    assert "old predict" in page.read_text()


def test_the_rate_of_a_folder_is_that_of_its_images(started: dict[str, list[Any]], tmp_path: Path) -> None:
    page = tmp_path / "BENCHMARKS.md"
    assert run.main(["--only", "folder", "--quick", "--out", str(page)]) == 0
    # 24 images in 10 ms, the network's part of it 5 ms.
    assert "| efficientdet auto (fake fp32) | 2400.0 | 4800.0 | 100 |" in page.read_text()


def test_a_side_that_fails_leaves_the_other_sections(
    started: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "BENCHMARKS.md"
    original = run.Bench.run

    def fails(self: run.Bench, case: Case) -> Any:
        if case.task == "postprocess":
            raise SideError("worn out")
        return original(self, case)

    monkeypatch.setattr(run.Bench, "run", fails)
    assert run.main(["--only", "postprocess", "--only", "predict", "--quick", "--out", str(page)]) == 1
    assert "bench:predict" in page.read_text() and "bench:postprocess" not in page.read_text()


def test_accuracy_is_left_out_where_there_is_no_dataset(
    started: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "PEOPLE", tmp_path / "nowhere")
    page = tmp_path / "BENCHMARKS.md"
    assert run.main(["--only", "accuracy", "--out", str(page)]) == 0
    assert "accuracy: left out, and not written: there is no dataset at" in capsys.readouterr().err
    assert not page.exists()


def test_both_sides_are_given_the_same_weights(tmp_path: Path) -> None:
    import torch

    from efficientdet.network.efficientdet import EfficientDet
    from efficientdet.weights.checkpoint import load_checkpoint
    from efficientdet.weights.foreign import load_foreign

    files = Files(tmp_path)
    for name, size, classes in (("people", 256, 1), ("lite0", 128, 90)):
        given = files.network(name, size)
        assert (given.network, given.size, given.num_classes) == ("lite0", size, classes)
        ours = load_checkpoint(given.checkpoint)[0]
        again = EfficientDet(ours.spec, classes)
        load_foreign(again, torch.load(given.weights, weights_only=True), source="effdet")
        expected = ours.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert files.crops(3) == files.crops(3) and len(files.crops(3)) == 3


def test_the_command_line() -> None:
    arguments = run.parse_arguments([])
    assert arguments.out == run.ROOT / "BENCHMARKS.md" and arguments.only[-1] == "start"
    assert run.parse_arguments(["--quick"]).out is None
    assert run.parse_arguments(["--no-peer"]).out is None
    cases = run.chosen_cases(run.parse_arguments(["--rounds", "4"]))
    assert {case.rounds for case in cases} == {0, 4}
    growing = next(case for case in cases if case.task == "growth")
    assert [side.label for side in growing.sides] == ["d0", "d1", "d2", "d3", "d4"]
    with pytest.raises(SystemExit):
        run.parse_arguments(["--rounds", "0"])


def test_another_python_may_have_effdet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run.PEER_VARIABLE, "/somewhere/python")
    assert run.peer_python() == "/somewhere/python"


@pytest.mark.slow
def test_a_quick_run_without_a_peer_measures_what_is_ours(tmp_path: Path) -> None:
    page = tmp_path / "BENCHMARKS.md"
    arguments = ["--quick", "--no-peer", "--rounds", "1", "--out", str(page)]
    tasks = [part for task in ("predict", "train", "folder") for part in ("--only", task)]
    assert run.main([*arguments, *tasks]) == 0
    text = page.read_text()
    assert all(f"bench:{task}" in text for task in ("predict", "train", "folder"))
    assert "efficientdet eager (eager fp32)" in text and "effdet's time" not in text
