"""The measuring side of a benchmark: starts a process for each side, and lets them take turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from efficientdet.errors import EfficientDetError

# Measured however long they take.
FEWEST_ROUNDS = 3


class SideError(EfficientDetError):
    """A side's process failed: the message names the side and holds what it said."""


class Worker:
    """A side's process, ready to measure, and what it has measured.

    Attributes:
        label: how reports call the side.
        facts: what it reported when it was ready.
        rounds: each a list of iterations, each milliseconds by part.
        peak_mib: the most memory that its process has held, where the system tells.
    """

    def __init__(
        self, label: str, command: Sequence[str], case: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process, and wait until it has built its case and run it once.

        Args:
            label: how reports call the side.
            command: runs a program that calls `conversation.serve`.
            case: what the program is told; ready for JSON.
            environment: variables over those of this process.

        Raises:
            SideError: it cannot be started, or fails.
        """
        self.label = label
        self.log = tempfile.TemporaryFile("w+")
        try:
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        except OSError as error:
            self.log.close()
            raise SideError(f"{label}: cannot be started ({error})") from error
        self.rounds: list[list[dict[str, float]]] = []
        self.peak_mib: float | None = None
        try:
            self.facts: dict[str, Any] = self._ask(case)["facts"]
        except BaseException:  # an interrupt too must not leave the process behind
            self.close()
            raise

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            self.log.seek(0)
            raise SideError(f"{self.label}: its process ended with code {code}:\n{self.log.read().strip()[-1500:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(f"{self.label}: {answer['error']}")
        return answer

    def measure(self, iterations: int) -> float:
        """Measure some iterations as a round; returns the median total in ms.

        Raises:
            SideError: it fails.
        """
        answer = self._ask({"run": iterations})
        self.rounds.append(answer["times"])
        self.peak_mib = answer["peak_mib"]
        return self.round_medians()[-1]

    def round_medians(self, part: str = "total") -> list[float]:
        """Median milliseconds of each round in a part."""
        return [median(times.get(part, 0.0) for times in one) for one in self.rounds]

    def close(self) -> None:
        """End the process; a second call does nothing."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and left something unread
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()


def settled(start: Callable[[], Worker], cache: Path) -> Worker:
    """Start a worker; once more if it built engines and kept them, so that its peak memory is of running them alone.

    Args:
        start: starts it.
        cache: the folder where engines are kept.

    Raises:
        SideError: it cannot be started, or fails.
    """
    before = set(cache.rglob("*"))
    worker = start()
    if set(cache.rglob("*")) == before:
        return worker
    worker.close()
    return start()


def take_turns(workers: list[Worker], rounds: int, iterations: int, seconds: float, say: Callable[[str], None]) -> None:
    """Let workers measure in turns, round after round.

    Args:
        workers: started.
        rounds: how often each has its turn.
        iterations: measured at each turn.
        seconds: no round begins later than this, though `FEWEST_ROUNDS` are measured.
        say: takes a line a round.

    Raises:
        SideError: a worker fails.
    """
    start = time.perf_counter()
    for number in range(1, rounds + 1):
        if number > FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            return
        found = [f"{worker.label} {worker.measure(iterations):.4g}" for worker in workers]
        say(f"  round {number}/{rounds}, ms: " + "; ".join(found))
