"""Compare this package with effdet 0.4.1 in one run, side by side, and write BENCHMARKS.md: `make bench`.

Each measured side is a process of its own (ours.py, peer_effdet.py) that waits while the others work; they take turns,
A B A B, so that a machine that slows down slows all of them, and every round gives ratios of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER_FOLDER = ROOT / ".bench" / "effdet"
PEER_PYTHON = PEER_FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PEER_PACKAGES = {"torch": "2.13.0", "torchvision": "0.28.0", "effdet": "0.4.1", "timm": "1.0.31"}
# A case ends after so many seconds of measuring, though not before its third round.
CASE_SECONDS = 150
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Side:
    """One thing that is measured.

    Attributes:
        label: how the report calls it.
        is_peer: whether it runs in the peer's environment.
        settings: what its process is told besides the case's settings.
        group: peers of the same group race; the fastest stands for them, and ours of that group are compared to it.
    """

    label: str
    is_peer: bool
    settings: dict[str, Any] = field(default_factory=dict)
    group: str = "fp32"


@dataclass(frozen=True)
class Case:
    """Sides that are measured in turns. More to measure is more rows in `CASES`, or sides in a case.

    Attributes:
        task: `train` or `predict`; also the section of the report.
        title: heading in the report.
        settings: what every side is told; `quick` settings go over them in a quick run.
        sides: ours and the peer's.
        rounds: how often the sides take turns.
        iterations: measured at a time.
    """

    task: str
    title: str
    settings: dict[str, Any]
    quick: dict[str, Any]
    sides: tuple[Side, ...]
    rounds: int
    iterations: int


TRAINING_SIDES = tuple(
    [Side(f"efficientdet {p}, channels_last", False, {"precision": p}, p) for p in ("fp32", "bf16")]
    + [
        Side(f"effdet {p}, {layout}", True, {"precision": p, "layout": layout}, p)
        for p in ("fp32", "bf16")
        for layout in ("channels_last", "NCHW")
    ]
)
PREDICTING_SIDES = tuple(
    [Side(f"efficientdet, scores >= {s}", False, {"score_threshold": s}) for s in (0.05, 0.001)]
    + [Side(f"effdet, {layout}", True, {"layout": layout}) for layout in ("channels_last", "NCHW")]
)
CASES = (
    Case(
        "train", "Training step, d0, 512 px, batch 4",
        {"model": "d0", "size": 512, "batch": 4, "learning_rate": 1e-4}, {"size": 256, "batch": 2},
        TRAINING_SIDES, rounds=5, iterations=1,
    ),
    Case(
        "train", "Training step, lite0, 320 px, batch 8",
        {"model": "lite0", "size": 320, "batch": 8, "learning_rate": 1e-4}, {"size": 256, "batch": 2},
        TRAINING_SIDES, rounds=5, iterations=1,
    ),
    Case(
        "predict", "From a 640x480 JPEG to boxes, d0, 512 px, batch 1, fp32",
        {"model": "d0", "size": 512}, {"size": 256}, PREDICTING_SIDES, rounds=15, iterations=3,
    ),
)  # fmt: skip


class WorkerError(Exception):
    """A side's process failed; holds the end of what it said."""


class Worker:
    """A side's process, and what it has measured."""

    def __init__(self, side: Side, case: Case, files: dict[str, str]) -> None:
        self.side = side
        script = HERE / ("peer_effdet.py" if side.is_peer else "ours.py")
        python = str(PEER_PYTHON if side.is_peer else sys.executable)
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=_environment(),
        )  # fmt: skip
        self.rounds: list[list[dict[str, float]]] = []
        self.peak_mib: float | None = None
        message = {"task": case.task, **case.settings, **files, **side.settings}
        self.facts: dict[str, Any] = self._ask(message)["facts"]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
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
            tail = self.log.read().strip()[-1500:]
            raise WorkerError(f"{self.side.label}: its process ended with code {code}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self, iterations: int) -> float:
        """Measure so many iterations as a round; gives the median in ms."""
        answer = self._ask({"run": iterations})
        self.rounds.append(answer["times"])
        self.peak_mib = answer["peak_mib"]
        return self.round_totals()[-1]

    def round_totals(self) -> list[float]:
        """Median total of each round, in ms."""
        return [median(times["total"] for times in one) for one in self.rounds]

    def close(self) -> None:
        """End the process."""
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


def _environment() -> dict[str, str]:
    """This compares CPUs: a GPU, if there is one, is hidden from both."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def say(text: str) -> None:
    """Progress, on the error stream."""
    print(text, file=sys.stderr, flush=True)


def install_peer() -> None:
    """Make effdet's environment, unless it is there. Some minutes and 5 GB where the index has torch for CUDA."""
    probe = f"from importlib.metadata import version as v; assert all(v(n) == w for n, w in {PEER_PACKAGES!r}.items())"
    if PEER_PYTHON.exists() and subprocess.run([PEER_PYTHON, "-c", probe], capture_output=True).returncode == 0:
        return
    say(f"installing effdet into {PEER_FOLDER}, once: 5 GB, some minutes")
    if not PEER_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER_FOLDER)], check=True)
    # torchvision works only beside the torch of the default index; so local settings of pip must not apply.
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    requirements = [f"{name}=={version}" for name, version in PEER_PACKAGES.items()]
    subprocess.run(
        [PEER_PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *requirements],
        check=True, env=environment, stdout=sys.stderr,
    )  # fmt: skip


def make_picture(path: Path) -> None:
    """A 640x480 JPEG: matplotlib's sample portrait, or where matplotlib is missing, waves with noise."""
    import numpy as np
    from PIL import Image

    try:
        from matplotlib.cbook import get_sample_data

        sample = get_sample_data("grace_hopper.jpg", asfileobj=False)
        image = Image.open(str(sample)).convert("RGB").resize((640, 480))
    except ImportError:
        rows, columns = np.mgrid[0:480, 0:640]
        waves = [127 + 90 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((37, 53), (11, 71), (90, 17))]
        noise = np.random.default_rng(0).normal(0, 8, (480, 640, 3))
        image = Image.fromarray(np.clip(np.stack(waves, 2) + noise, 0, 255).astype(np.uint8))
    image.save(path, quality=90)


def make_weights(case: Case, picture: Path) -> Path:
    """The file of a case's weights beside the picture; written where no earlier case has done it."""
    name, size = case.settings["model"], str(case.settings["size"])
    path = picture.with_name(f"{name}-{size}.pt")
    if not path.exists():
        script = [sys.executable, str(HERE / "random_weights.py"), name, size, str(picture), str(path)]
        subprocess.run(script, check=True, env=_environment())
    return path


@contextmanager
def started(case: Case, files: dict[str, str], with_peer: bool) -> Iterator[tuple[list[Worker], list[str]]]:
    """Start a case's sides, ours first; of each group of peers only the fastest stays. Each has run when it comes.

    Gives the sides, and what is to be said of the peers that are not among them.
    """
    with ExitStack() as stack:
        workers: list[Worker] = []
        notes: list[str] = []
        for side in case.sides:
            if not side.is_peer:
                say(f"  starting {side.label}")
                workers.append(Worker(side, case, files))
                stack.callback(workers[-1].close)
        peers = [side for side in case.sides if side.is_peer and with_peer]
        for group in dict.fromkeys(side.group for side in peers):
            best = _race([side for side in peers if side.group == group], case, files, notes)
            if best is not None:
                workers.append(best)
                stack.callback(best.close)
        if peers and not any(worker.side.is_peer for worker in workers):
            raise WorkerError("no variant of effdet runs; to measure without it: --no-peer")
        yield workers, notes


def _race(sides: list[Side], case: Case, files: dict[str, str], notes: list[str]) -> Worker | None:
    """The fastest of some variants of the peer; the others are ended. One that fails is left out and noted."""
    best: Worker | None = None
    for side in sides:
        try:
            worker = Worker(side, case, files)
        except WorkerError as error:
            say(f"  left out: {error}")
            notes.append(f"{side.label}: fails")
            continue
        worker.measure(case.iterations)
        worker.measure(case.iterations)
        notes.append(f"{side.label}: {min(worker.round_totals()):.0f} ms")
        say(f"  race: {notes[-1]}")
        slower = worker
        if best is None or min(worker.round_totals()) < min(best.round_totals()):
            slower, best = best or worker, worker
        if slower is not best:
            slower.close()
    if best is not None:
        best.rounds.clear()
    return best


def run_case(case: Case, files: dict[str, str], with_peer: bool) -> report.Result:
    """Measure a case: all sides in turn, round after round."""
    say(f"{case.title}")
    with started(case, files, with_peer) as (workers, notes):
        start, rounds = time.perf_counter(), 0
        while rounds < case.rounds:
            if rounds >= FEWEST_ROUNDS and time.perf_counter() - start > CASE_SECONDS:
                break
            rounds += 1
            found = [f"{worker.side.label} {worker.measure(case.iterations):.0f}" for worker in workers]
            say(f"  round {rounds}/{case.rounds}, ms: " + "; ".join(found))
        return report.Result(
            task=case.task,
            title=case.title,
            notes=notes,
            pictures=case.settings.get("batch", 1),
            sides=[
                report.SideResult(
                    worker.side.label, worker.side.is_peer, worker.side.group, worker.rounds, worker.peak_mib,
                    worker.facts,
                )
                for worker in workers
            ],
        )  # fmt: skip


def chosen_cases(only: str | None, quick: bool, rounds: int | None) -> list[Case]:
    """The cases that the command line asks for."""
    cases = [case for case in CASES if only in (None, case.task)]
    if quick:
        cases = [replace(case, settings={**case.settings, **case.quick}, rounds=2, iterations=1) for case in cases]
        cases = [replace(case, title=f"{case.title} [quick: {case.quick}]") for case in cases]
    return [replace(case, rounds=rounds) for case in cases] if rounds else cases


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="how often the sides take turns; by default each case's own number")
    parser.add_argument("--quick", action="store_true", help="small inputs, two rounds: does everything work?")
    parser.add_argument("--only", choices=sorted({case.task for case in CASES}), help="this part alone")
    parser.add_argument("--no-peer", action="store_true", help="without effdet, and without installing it")
    kept = "file to write; by default BENCHMARKS.md for complete runs, none with --quick or --no-peer"
    parser.add_argument("--out", type=Path, help=kept)
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; it must be at least 1")
    if arguments.out is None and not arguments.quick and not arguments.no_peer:
        arguments.out = ROOT / "BENCHMARKS.md"
    return arguments


def main() -> int:
    """Run the benchmark; 1 if a side failed or the two sides do not compute the same."""
    arguments = parse_arguments()
    cases = chosen_cases(arguments.only, arguments.quick, arguments.rounds)
    if not arguments.no_peer:
        install_peer()
    machine = report.Machine.read()
    if machine.is_busy():
        say(f"warning: the machine is busy (load {machine.load:.1f}); absolute figures will be too slow")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.jpg")
        make_picture(picture)
        for case in cases:
            files = {"weights": str(make_weights(case, picture)), "picture": str(picture)}
            try:
                results.append(run_case(case, files, not arguments.no_peer))
            except WorkerError as error:
                say(f"error: {error}")
                return 1
    text = report.sections(results, machine, "python " + " ".join(["benchmarks/run.py", *sys.argv[1:]]))
    print("\n\n".join(text.values()))
    if arguments.out is not None:
        report.write(arguments.out, text)
        say(f"written: {arguments.out}")
    return 0 if all(check.agrees for result in results for check in report.checks(result)) else 1


if __name__ == "__main__":
    sys.exit(main())
