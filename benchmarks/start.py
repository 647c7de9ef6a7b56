"""From nothing to the first prediction: a new process imports, loads d0 from a file on disk, and finds boxes once.

    python benchmarks/start.py

This package and effdet 0.4.1 take turns; wall time and peak memory are the operating system's for the whole process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import report
import run
from files import Files

from efficientdet.research.benchmark.hardware import Hardware
from efficientdet.research.benchmark.processes import SideError

OURS = """
import sys, torch
import efficientdet as ed
print(len(ed.load(sys.argv[1], device="cpu", score_threshold=0.05).predict(sys.argv[2])))
"""
PEER = """
import sys
import effdet_side
case = {"model": "d0", "size": 512, "num_classes": 90, "batch": 1, "weights": sys.argv[1], "layout": "channels_last"}
case |= {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
print(len(effdet_side.Predictor(case).predict([sys.argv[2]])[0]))
"""


def measure(python: str, program: str, weights: Path, picture: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [python, "-c", program, str(weights), str(picture)], cwd=run.HERE, stdout=subprocess.DEVNULL,
        env={**os.environ, **(run.PEER_ENVIRONMENT if python == str(run.PEER_PYTHON) else run.ENVIRONMENT)},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SideError(f"a process ended with code {process.returncode}; its error stands above")
    return seconds, usage.ru_maxrss / 1024


def main() -> int:
    """Measure in turns and write the section `start` of BENCHMARKS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=run.ROOT / "BENCHMARKS.md", help="file to write")
    arguments = parser.parse_args()
    run.install_peer()
    machine = Hardware.read()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        picture, theirs = files.picture, Path(files.effdet_weights("d0", 512))
        ours = Path(files.checkpoint("d0", 512))
        sides = {
            "efficientdet": (sys.executable, OURS, ours),
            "effdet": (str(run.PEER_PYTHON), PEER, theirs),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(arguments.rounds + 1):  # the first fills the disk cache
            for name, (python, program, weights) in sides.items():
                result = measure(python, program, weights, picture)
                run.say(f"  {name}: {result[0]:.2f} s, {result[1]:.0f} MiB")
                if number:
                    found[name].append(result)
    rows = [["", "seconds", "peak memory, MiB"]]
    for name, results in found.items():
        seconds, memory = (list(part) for part in zip(*results, strict=True))
        rows.append([name, report.spread(seconds, 2), report.spread(memory, 0)])
    pairs = list(zip(found["effdet"], found["efficientdet"], strict=True))
    rows.append(["effdet / efficientdet", *(f"{median(t[i] / o[i] for t, o in pairs):.2f}" for i in (0, 1))])
    text = f"`python benchmarks/start.py`, {arguments.rounds} rounds, on {machine.describe()}.\n\n"
    report.write(arguments.out, {"start": text + report.table(rows)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
