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

OURS = """
import sys, torch
import efficientdet as ed
print(len(ed.load(sys.argv[1], device="cpu", score_threshold=0.05).predict(sys.argv[2])))
"""
PEER = """
import sys
import peer_effdet
case = {"model": "d0", "size": 512, "weights": sys.argv[1], "layout": "channels_last"}
print(len(peer_effdet.Predictor(case).predict(sys.argv[2])))
"""
CONVERT = """
import sys
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.convert import convert_file
network, info = convert_file(sys.argv[1], "d0", "effdet")
save_checkpoint(sys.argv[2], network.state_dict(), info)
"""


def measure(python: str, program: str, weights: Path, picture: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [python, "-c", program, str(weights), str(picture)], cwd=run.HERE, stdout=subprocess.DEVNULL,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(run.HERE)},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise run.WorkerError(f"a process ended with code {process.returncode}; its error stands above")
    return seconds, usage.ru_maxrss / 1024


def main() -> int:
    """Measure in turns and write the section `start` of BENCHMARKS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    run.install_peer()
    machine = report.Machine.read()
    case = next(case for case in run.CASES if case.task == "predict")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        run.make_picture(picture)
        theirs = run.make_weights(case, picture)
        ours = Path(folder) / "d0.safetensors"
        subprocess.run([sys.executable, "-c", CONVERT, str(theirs), str(ours)], check=True)
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
    report.write(run.ROOT / "BENCHMARKS.md", {"start": text + report.table(rows)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
