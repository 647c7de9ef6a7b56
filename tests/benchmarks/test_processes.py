"""The sides are processes that take turns; one that fails says why."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conversation import peak_memory
from processes import FEWEST_ROUNDS, SideError, Worker, take_turns

SIDE = """
import sys
sys.path.insert(0, {folder!r})
from conversation import serve

def make(case):
    if case.get("dies"):
        sys.exit("out of luck")
    if case.get("raises"):
        raise ValueError("no such thing")
    left = [case.get("lasts", 99)]

    def measure():
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("worn out")
        with open(case["log"], "a") as log:
            log.write(case["name"])
        print("libraries may print")
        return {{"total": 2.0, "network": 1.0}}

    return measure, {{"name": case["name"]}}

serve(make)
"""


@pytest.fixture
def command(tmp_path: Path, folder: Path) -> list[str]:
    script = tmp_path / "side.py"
    script.write_text(SIDE.format(folder=str(folder)))
    return [sys.executable, str(script)]


def test_sides_take_turns(command: list[str], tmp_path: Path) -> None:
    log, lines = tmp_path / "log", list[str]()
    workers = [Worker(name, command, {"name": name, "log": str(log)}) for name in "ABC"]
    try:
        take_turns(workers, 3, 2, 60, lines.append)
    finally:
        for worker in workers:
            worker.close()
    assert log.read_text() == "AABBCC" * 3
    assert workers[1].facts == {"name": "B"}
    assert workers[0].rounds == [[{"total": 2.0, "network": 1.0}] * 2] * 3
    assert workers[0].round_medians("network") == [1.0] * 3
    assert len(lines) == 3 and "round 3/3" in lines[-1]


def test_no_round_begins_after_the_time_is_over(command: list[str], tmp_path: Path) -> None:
    worker = Worker("A", command, {"name": "A", "log": str(tmp_path / "log")})
    try:
        take_turns([worker], 9, 1, 0, lambda line: None)
    finally:
        worker.close()
    assert len(worker.rounds) == FEWEST_ROUNDS


@pytest.mark.parametrize(
    ("case", "message"),
    [({"dies": True}, "A: its process ended with code 1:\nout of luck"), ({"raises": True}, "A: ValueError.*no such")],
)
def test_a_side_that_cannot_be_built_says_why(command: list[str], case: dict[str, bool], message: str) -> None:
    with pytest.raises(SideError, match=message):
        Worker("A", command, case)


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(SideError, match="A: cannot be started.*nowhere"):
        Worker("A", ["nowhere/python"], {})


def test_a_side_that_fails_later_says_why(command: list[str], tmp_path: Path) -> None:
    worker = Worker("A", command, {"name": "A", "log": str(tmp_path / "log"), "lasts": 1})
    try:
        with pytest.raises(SideError, match="A: RuntimeError.*worn out"):
            take_turns([worker], 3, 1, 60, lambda line: None)
    finally:
        worker.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
def test_the_peak_memory_is_the_processs_own_not_its_parents(command: list[str], tmp_path: Path) -> None:
    held = bytearray(os.urandom(1)) * (300 * 2**20)  # written, so that it counts
    worker = Worker("A", command, {"name": "A", "log": str(tmp_path / "log")})
    try:
        worker.measure(1)
    finally:
        worker.close()
    own = peak_memory()
    assert own is not None and own > 300
    assert worker.peak_mib is not None and 5 < worker.peak_mib < 200
    del held
