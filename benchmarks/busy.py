"""What one competing process costs a prediction, by backend, and a training step.

    python benchmarks/busy.py [--backends eager,onnxruntime,openvino] [--train DATASET]

An image goes from file to boxes in turns, with a process beside it that computes without end and without it; so do
epochs of `efficientdet train`. Prints the medians and their ratio. Exit code 1: PyTorch, in its engine (eager) or in
training, takes over three times as long.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import efficientdet as ed
from efficientdet.inference.benchmark import sample_jpeg
from efficientdet.inference.detector import Detector
from efficientdet.inference.hardware import Hardware

MOST = 3.0
# Seconds before a measurement: the detector looks at what other processes use, and the system moves them about.
SETTLE = 1.0
TRAINING, EPOCHS = "training, an image", 4


@contextmanager
def competitor(is_there: bool) -> Iterator[None]:
    """A process that computes without end, or none; in a session of its own, as a program in another terminal."""
    command = [sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command, start_new_session=True) if is_there else None
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


def measure_training(data: Path) -> float:
    """Milliseconds an image, the median of the epochs."""
    with tempfile.TemporaryDirectory() as folder:
        command = (
            f"train lite0 --data {data} --out {folder}/run --image-size 320 --batch-size 4 --epochs {EPOCHS} "
            "--logger csv"
        )
        process = subprocess.run(
            [sys.executable, "-m", "efficientdet", *command.split()], capture_output=True, text=True, check=True
        )
    return median(1e3 / float(speed) for speed in re.findall(r"images/s ([\d.]+)", process.stdout + process.stderr))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="people")
    parser.add_argument("--backends", default="eager,onnxruntime,openvino")
    parser.add_argument("--train", type=Path, metavar="DATASET")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--predictions", type=int, default=10)
    options = parser.parse_args()
    print(Hardware.read())
    print("| side | alone | beside a busy process | ratio |\n|---|---:|---:|---:|")
    image, is_slow = sample_jpeg(), False
    sides: dict[str, Callable[[], float]] = {}
    for backend in options.backends.split(","):
        detector = ed.load(options.model, backend=backend, device="cpu")
        sides[backend] = functools.partial(measure, detector, image, options.predictions)
    if options.train:
        sides[TRAINING] = functools.partial(measure_training, options.train)
    for name, measured in sides.items():
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(1 if name == TRAINING else options.rounds):
            for is_there in times:
                with competitor(is_there):
                    times[is_there].append(measured())
        alone, beside = (median(times[is_there]) for is_there in (False, True))
        is_slow |= name in ("eager", TRAINING) and beside > MOST * alone
        print(f"| {name} | {alone:.1f} ms | {beside:.1f} ms | {beside / alone:.1f} |", flush=True)
    raise SystemExit(is_slow)


if __name__ == "__main__":
    main()
