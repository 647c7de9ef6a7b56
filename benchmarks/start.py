"""From nothing to the first prediction: a new process imports, loads d0 from disk, and finds boxes once."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from cases import Side
from checks import same_detections
from files import Files
from processes import SideError
from results import Result, SideResult

from efficientdet.inference.benchmark import Spread

THRESHOLD = 0.05
OURS = """
import json, sys
case = json.loads(sys.argv[1])
import efficientdet as ed
found = ed.load(case["checkpoint"], device="cpu", score_threshold=0.05).predict(case["image"])
rows = list(zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist()))
from conversation import peak_memory
print(json.dumps([peak_memory(), [[*box, score, label] for box, score, label in rows]]))
"""
# As `efficientdet predict` does for one image, once its file is in the cache, which the first round sees to.
QUICK = OURS.replace("import efficientdet as ed", "from efficientdet.exporting.cold_start import load_quickly").replace(
    "ed.load(", "load_quickly("
)
PEER = """
import json, sys
import peer
from conversation import peak_memory
case = json.loads(sys.argv[1])
rows = peer.Predictor(case).rows([case["image"]], exact_padding=True)[0]
print(json.dumps([peak_memory(), rows]))
"""


class Process(NamedTuple):
    """What one process took, and found."""

    seconds: float
    peak_mib: float
    rows: list[list[float]]


def measure(python: str, program: str, case: Mapping[str, Any], environment: Mapping[str, str]) -> Process:
    """Run a program.

    Raises:
        SideError: it fails.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        [python, "-c", program, json.dumps(case)], cwd=Path(__file__).parent, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SideError(f"start: a process ended with code {done.returncode}:\n{done.stderr.strip()[-1500:]}")
    peak_mib, rows = json.loads(done.stdout.splitlines()[-1])  # libraries may print before
    return Process(seconds, math.nan if peak_mib is None else peak_mib, rows)


def run_start(
    files: Files, commands: Mapping[str, tuple[str, Mapping[str, str]]], rounds: int, say: Callable[[str], None]
) -> Result:
    """Measure new processes in turns.

    Args:
        files: gives the network and the image.
        commands: the Python of `efficientdet` and `effdet`, and variables of its environment.
        rounds: how often the sides take turns, after one round that fills the disk cache.
        say: takes a line a process.

    Raises:
        SideError: a process fails.
    """
    network = files.network("d0")
    case = {**network._asdict(), "image": str(files.image), "layout": "channels_last"}
    programs = {"efficientdet": OURS, "effdet": PEER}
    sides = [(name, programs[name], *commands[name]) for name in commands]
    sides.insert(1, ("efficientdet predict", QUICK, *commands["efficientdet"]))
    found: dict[str, list[Process]] = {name: [] for name, *_ in sides}
    for _ in range(rounds + 1):
        for name, program, python, environment in sides:
            found[name].append(measure(python, program, case, environment))
            say(f"  {name}: {found[name][-1].seconds:.2f} s")
    rows = [["side", "seconds", "peak memory, MiB"]]
    for name, processes in found.items():
        seconds, memory = Spread.of([p.seconds for p in processes[1:]]), Spread.of([p.peak_mib for p in processes[1:]])
        rows.append([name, seconds.text(2), memory.text(0)])
    checks = []
    if "effdet" in found:
        theirs = found["effdet"]
        for name in ("efficientdet", "efficientdet predict"):
            pairs = list(zip(theirs[1:], found[name][1:], strict=True))
            seconds_ratio = median(peer.seconds / our.seconds for peer, our in pairs)
            memory_ratio = median(peer.peak_mib / our.peak_mib for peer, our in pairs)
            rows.append([f"effdet / {name}", f"{seconds_ratio:.2f}", f"{memory_ratio:.2f}"])
            checks.append(same_detections(name, [found[name][-1].rows], [theirs[0].rows], THRESHOLD))
    results = [SideResult(Side(name, "ours" if name == "efficientdet" else "peer"), [], None, {}) for name in commands]
    title = "From a new process to the first boxes of d0, 512 px"
    return Result("start", title, "d0", network.num_classes, network.size, 1, results, checks=checks, table=rows)
