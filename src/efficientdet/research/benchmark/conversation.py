"""The measured side of a benchmark: answers in JSON lines, and the stopwatch.

Standard library alone, and nothing of this package: it also runs in the environment of a peer, which has neither.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# One measured iteration: milliseconds by part, `total` among them.
Measure = Callable[[], dict[str, float]]


def serve(make: Callable[[dict[str, Any]], tuple[Measure, dict[str, Any]]]) -> None:
    """Answer the process that started this one, one JSON line for each of its lines.

    The first line is the case: `make` builds it, runs it once to warm up, and gives what to measure and facts to
    report. Every later line, {"run": N}, measures N iterations. The end of the input ends the process. What fails is
    answered as {"error": ...}, and ends it too.
    """
    # Libraries that print must not break into the conversation: their output goes to the error stream.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        measure, facts = make(json.loads(sys.stdin.readline()))
        reply({"facts": facts})
        for line in sys.stdin:
            reply({"times": [measure() for _ in range(json.loads(line)["run"])], "peak_mib": peak_memory()})
    except Exception as error:  # the border between processes: the other one decides what an error means
        traceback.print_exc()
        reply({"error": f"{error}" if type(error).__module__.startswith("efficientdet") else repr(error)})
        sys.exit(1)


def peak_memory() -> float | None:
    """The most memory that this process has held, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Stopwatch:
    """Milliseconds by part.

    Attributes:
        milliseconds: what has been measured so far.
        wait: called before each look at the clock, for devices that work on while the program goes on.
    """

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.milliseconds: dict[str, float] = {}
        self.wait = wait

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        spent = (time.perf_counter() - start) * 1000
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent


def timed_total(step: Callable[[], Any]) -> Measure:
    """Measure a step as a whole."""

    def measure() -> dict[str, float]:
        watch = Stopwatch()
        with watch.part("total"):
            step()
        return watch.milliseconds

    return measure
