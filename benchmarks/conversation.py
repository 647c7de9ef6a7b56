"""The measured side of a benchmark: answers in JSON lines, and the stopwatch.

Standard library and numpy alone: this also runs in effdet's environment, which lacks this package.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One measured iteration: milliseconds by part, `total` among them.
Measure = Callable[[], dict[str, float]]
NUM_CLASSES = 90
BOXES_PER_IMAGE = 8  # COCO has 7.3 on average


def serve(make: Callable[[dict[str, Any]], tuple[Measure, dict[str, Any]]]) -> None:
    """Answer the process that started this one, one JSON line for each of its lines.

    The first line is the case: `make` builds it, runs it once to warm up, and returns what to measure and the facts to
    report. Every later line, {"run": N}, measures N iterations. The end of the input ends the process. An error is
    answered as {"error": ...} and ends it too.
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
    """The most memory that this process has held, in MiB; None where the system does not tell.

    `getrusage` would tell the parent's, where that is higher: Linux hands it down.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found.group(1)) / 2**10 if found else None


class Stopwatch:
    """Milliseconds by part; `part` is a `Detector.timer`."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        start = time.perf_counter()
        yield
        spent = (time.perf_counter() - start) * 1000
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent


def only(part: str, milliseconds: dict[str, float]) -> dict[str, float]:
    """The times of an iteration whose total is that of one part; `total` leaves them as they are."""
    return milliseconds if part == "total" else {"total": milliseconds[part]}


def timed_total(step: Callable[[], Any]) -> Measure:
    """Measure a step as a whole."""

    def measure() -> dict[str, float]:
        watch = Stopwatch()
        with watch.part("total"):
            step()
        return watch.milliseconds

    return measure


def training_batch(batch: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """A made-up batch, the same on both sides.

    Returns:
        Images (B, 3, size, size); boxes_xyxy (B, N, 4) in pixels, sides from an eighth to a half of the image's;
        labels (B, N), 0-based.
    """
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, 3, size, size), dtype=np.float32)
    # Smaller boxes would lie inside several anchors, equally well, and rounding would decide which one effdet takes.
    sides = size * 2.0 ** random.uniform(-3, -1, (batch, BOXES_PER_IMAGE, 2))
    corners = random.uniform(0, 1, sides.shape) * (size - sides)
    boxes = np.concatenate([corners, corners + sides], 2).astype(np.float32)
    labels = random.integers(0, NUM_CLASSES, boxes.shape[:2])
    return images, boxes, labels
