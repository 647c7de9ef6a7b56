"""What both measured sides share: the conversation with run.py, the training batch, and how parts are timed.

Runs in this package's environment and in the peer's: needs the standard library and numpy alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One measured iteration: milliseconds by part, `total` among them.
Measure = Callable[[], dict[str, float]]
NUM_CLASSES = 90
BOXES_PER_PICTURE = 8  # COCO has 7.3 on average


def serve(make: Callable[[dict[str, Any]], tuple[Measure, dict[str, Any]]]) -> None:
    """Answer run.py, one JSON line for each of its lines.

    The first line is the case: `make` builds it, runs it once to warm up, and gives what to measure and facts to
    report. Every later line, {"run": N}, measures N iterations. The end of the input ends the process.
    """
    # Libraries that print must not break into the conversation: their output goes to the error stream.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    measure, facts = make(json.loads(sys.stdin.readline()))
    reply({"facts": facts})
    for line in sys.stdin:
        reply({"times": [measure() for _ in range(json.loads(line)["run"])], "peak_mib": peak_memory()})


def peak_memory() -> float | None:
    """The most memory that this process has held, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def training_batch(batch: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """A made-up batch, the same on both sides.

    Returns:
        Images (B, 3, size, size); boxes_xyxy (B, N, 4) in pixels, sides from an eighth to a half of the picture's;
        labels (B, N), 0-based.
    """
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, 3, size, size), dtype=np.float32)
    # Smaller boxes would lie inside several anchors, equally well, and rounding would decide which one effdet takes.
    sides = size * 2.0 ** random.uniform(-3, -1, (batch, BOXES_PER_PICTURE, 2))
    corners = random.uniform(0, 1, sides.shape) * (size - sides)
    boxes = np.concatenate([corners, corners + sides], 2).astype(np.float32)
    labels = random.integers(0, NUM_CLASSES, boxes.shape[:2])
    return images, boxes, labels


def timed_total(step: Callable[[], Any]) -> Measure:
    """Measure a step as a whole."""

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        step()
        return {"total": (time.perf_counter() - start) * 1000}

    return measure


class Parts:
    """Times functions where they stand, so that what is measured is the path that users run."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count the time spent in `owner.name` as `part`, from now on."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = (time.perf_counter() - start) * 1000
                self.milliseconds[part] = self.milliseconds.get(part, 0.0) + spent

        setattr(owner, name, timed)

    def timed(self, step: Callable[[], Any]) -> Measure:
        """Measure a step as a whole and by its parts."""
        whole = timed_total(step)

        def measure() -> dict[str, float]:
            self.milliseconds = {}
            return {**whole(), **self.milliseconds}

        return measure
