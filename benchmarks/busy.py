"""What one competing process costs a prediction, by backend.

    python benchmarks/busy.py [--backends eager,onnxruntime,openvino]

An image goes from file to boxes in turns, with a process beside it that computes without end and without it. Prints the
medians and their ratio. Exit code 1: PyTorch's own engine (eager) takes over three times as long.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import efficientdet as ed
from efficientdet.inference.benchmark import sample_jpeg
from efficientdet.inference.detector import Detector
from efficientdet.inference.hardware import Hardware

MOST = 3.0
# Seconds before a measurement: the detector looks at what other processes use, and the system moves them about.
SETTLE = 1.0


@contextmanager
def competitor(is_there: bool) -> Iterator[None]:
    """A process that computes without end, or none."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if is_there else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def measure(detector: Detector, image: bytes, predictions: int) -> float:
    """Milliseconds of a prediction, the median."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < SETTLE:
        detector.predict(image)
    times = []
    for _ in range(predictions):
        begin = time.perf_counter()
        detector.predict(image)
        times.append(1e3 * (time.perf_counter() - begin))
    return median(times)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="people")
    parser.add_argument("--backends", default="eager,onnxruntime,openvino")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--predictions", type=int, default=10)
    options = parser.parse_args()
    print(Hardware.read())
    print("| backend | alone | beside a busy process | ratio |\n|---|---:|---:|---:|")
    image, is_slow = sample_jpeg(), False
    for backend in options.backends.split(","):
        detector = ed.load(options.model, backend=backend, device="cpu")
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds):
            for is_there in times:
                with competitor(is_there):
                    times[is_there].append(measure(detector, image, options.predictions))
        alone, beside = (median(times[is_there]) for is_there in (False, True))
        is_slow |= backend == "eager" and beside > MOST * alone
        print(f"| {backend} | {alone:.1f} ms | {beside:.1f} ms | {beside / alone:.1f} |", flush=True)
    raise SystemExit(is_slow)


if __name__ == "__main__":
    main()
