"""Compare this package with effdet 0.4.1 in one run, side by side, and write BENCHMARKS.md: `make bench`.

Each measured side is a process of its own that waits while the others work; they take turns, A B A B, so that a machine
that slows down slows all of them, and every round gives ratios of its own. What is measured stands in cases.py. A
section of the report whose two sides do not compute the same is not written.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
from accuracy import compare, compare_example, evaluate
from cases import CASES, LARGE, Case, Side
from checks import Check
from files import PEOPLE, Files
from processes import Worker, settled, take_turns
from results import Result, SideResult
from start import run_start

from efficientdet.errors import EfficientDetError
from efficientdet.inference.hardware import Hardware

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER_FOLDER = ROOT / ".bench" / "effdet"
# Another Python that has effdet.
PEER_VARIABLE = "EFFICIENTDET_PEER_PYTHON"
PEER_PACKAGES = {
    "torch": "2.13.0", "torchvision": "0.28.0", "effdet": "0.4.1", "timm": "1.0.31", "onnx": "1.23.2",
    "onnxruntime": "1.32.0",
}  # fmt: skip
# Engines that were built for an earlier run serve again.
ENGINE_CACHE = ROOT / ".bench" / "cache"
# This compares CPUs: a GPU, if there is one, is hidden from both.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "EFFICIENTDET_CACHE": str(ENGINE_CACHE), "EFFICIENTDET_BACKEND": "auto",
}  # fmt: skip
START_ROUNDS = 5


class NotTheSameError(EfficientDetError):
    """Two sides do not compute the same: the message says which, and how far apart they are."""


def say(text: str) -> None:
    """Progress, on the error stream."""
    print(text, file=sys.stderr, flush=True)


def peer_python() -> str:
    """The Python that has effdet; made where it is missing: some minutes, 5 GB with torch for CUDA."""
    if os.environ.get(PEER_VARIABLE):
        return os.environ[PEER_VARIABLE]
    python = PEER_FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    probe = f"from importlib.metadata import version as v; assert all(v(n) == w for n, w in {PEER_PACKAGES!r}.items())"
    if python.exists() and subprocess.run([python, "-c", probe], capture_output=True).returncode == 0:
        return str(python)
    say(f"installing effdet into {PEER_FOLDER}, once: 5 GB, some minutes")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER_FOLDER)], check=True)
    # torchvision works only beside the torch of the default index; so local settings of pip must not apply.
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    requirements = [f"{name}=={version}" for name, version in PEER_PACKAGES.items()]
    subprocess.run(
        [python, "-m", "pip", "install", "--disable-pip-version-check", *requirements],
        check=True, env=environment, stdout=sys.stderr,
    )  # fmt: skip
    return str(python)


class Bench:
    """Runs cases.

    Args:
        files: what the sides are given.
        peer: the Python that has effdet; None to measure this package alone.
    """

    def __init__(self, files: Files, peer: str | None) -> None:
        self.files = files
        self.peer = peer

    def run(self, case: Case) -> Result:
        """Compare what the sides of a case compute, and measure them.

        Raises:
            SideError: a side fails.
            NotTheSameError: two sides do not compute the same; nothing is measured then.
        """
        say(case.title)
        with self._started(case) as (sides, notes):
            network = self.files.network(case.network, case.size)
            results = [SideResult(side, worker.rounds, None, worker.facts) for side, worker in sides]
            result = Result(
                case.task, case.title, case.network, network.num_classes, network.size,
                case.settings["batch"] if case.task == "train" else case.count, results, notes,
            )  # fmt: skip
            if self.peer is not None:
                result = self._compared(result, case)
            take_turns([worker for _, worker in sides], case.rounds, case.iterations, case.seconds, say)
            measured = [replace(one, peak_mib=worker.peak_mib) for one, (_, worker) in zip(results, sides, strict=True)]
            return replace(result, sides=measured)

    def _compared(self, result: Result, case: Case) -> Result:
        network = self.files.network(case.network, case.size)
        if case.task == "accuracy":
            table, checks = evaluate(result, case)
            if case.images == "people":
                checks.append(compare_example(self.files))
            result = replace(result, table=table, checks=checks)
        else:
            result = replace(result, checks=compare(result, network, self.files.image))
        refuse(result.checks)
        return result

    @contextmanager
    def _started(self, case: Case) -> Iterator[tuple[list[tuple[Side, Worker]], list[str]]]:
        """Start a case's sides, ours first; of each group of peers only the fastest stays. Each has run when it comes.

        Yields the sides, and what is to be said of those that are not among them.
        """
        with ExitStack() as stack:
            workers: list[tuple[Side, Worker]] = []
            notes: list[str] = []
            for side in (side for side in case.sides if not side.is_peer):
                say(f"  starting {side.label}")
                worker = self._start(side, case)
                workers.append((side, worker))
                stack.callback(worker.close)
            peers = [side for side in case.sides if side.is_peer and self.peer is not None]
            for group in dict.fromkeys(side.group for side in peers):
                best = self._race([side for side in peers if side.group == group], case, notes)
                workers.append(best)
                stack.callback(best[1].close)
            yield workers, notes

    def _race(self, sides: list[Side], case: Case, notes: list[str]) -> tuple[Side, Worker]:
        """The fastest of some variants of the peer; the others are ended."""
        best: tuple[Side, Worker] | None = None
        for side in sides:
            say(f"  starting {side.label}")
            worker = self._start(side, case)
            if len(sides) == 1:
                return side, worker
            worker.measure(case.iterations)
            worker.measure(case.iterations)
            notes.append(f"{side.label}: {min(worker.round_medians()):.0f} ms")
            say(f"  race: {notes[-1]}")
            slower = worker
            if best is None or min(worker.round_medians()) < min(best[1].round_medians()):
                slower, best = (best or (side, worker))[1], (side, worker)
            if slower is not best[1]:
                slower.close()
        assert best is not None
        best[1].rounds.clear()
        return best

    def _start(self, side: Side, case: Case) -> Worker:
        """Start a side's process."""
        python = self.peer if side.is_peer else sys.executable
        command = [str(python), str(HERE / f"{side.program}.py")]
        told = self._told(side, case)
        begin = functools.partial(Worker, side.label, command, told, ENVIRONMENT)
        worker = begin() if side.is_peer else settled(begin, ENGINE_CACHE / "engines")
        worker.facts |= {name: told[name] for name in ("size", "num_classes", "input_file")}
        return worker

    def _told(self, side: Side, case: Case) -> dict[str, Any]:
        """The case as a side's program takes it."""
        settings = dict(side.settings)
        name = settings.pop("network", case.network)
        network = self.files.network(name, case.size)
        if settings.pop("int8", False):
            network = network._replace(checkpoint=self.files.int8(name, case.size))
        images = [] if case.task == "train" else self.files.images(case.images, case.count)
        input_file = str(self.files.folder / f"{side.program}.npy")
        given = {"task": case.task, "images": images, "input_file": input_file}
        return {**network._asdict(), **given, **case.settings, **settings}


def refuse(checks: list[Check]) -> None:
    """Let nothing pass whose sides do not compute the same.

    Raises:
        NotTheSameError: names the checks that do not hold, and by how much.
    """
    failed = [check.text for check in checks if not check.agrees]
    if failed:
        raise NotTheSameError("the two sides do not compute the same: " + "; ".join(failed))


def run_task(task: str, cases: list[Case], bench: Bench, rounds: int) -> list[Result]:
    """The results of a section.

    Raises:
        EfficientDetError: a side fails, or two sides do not compute the same.
    """
    if task != "start":
        return [bench.run(case) for case in cases if case.task == task]
    commands = {"efficientdet": (sys.executable, ENVIRONMENT)}
    commands |= {"effdet": (bench.peer, ENVIRONMENT)} if bench.peer is not None else {}
    result = run_start(bench.files, commands, rounds, say)
    refuse(result.checks)
    return [result]


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases, as the command line asks for them."""
    cases = [
        case if arguments.all_sizes else replace(case, sides=tuple(s for s in case.sides if s.label not in LARGE))
        for case in CASES
    ]
    cases = [case.made_quick() for case in cases] if arguments.quick else cases
    # A case of 0 rounds compares and measures nothing.
    return [replace(case, rounds=min(case.rounds, 1) * (arguments.rounds or case.rounds)) for case in cases]


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="how often the sides take turns; by default each case's own number")
    parser.add_argument("--quick", action="store_true", help="small inputs, two rounds: does everything work?")
    tasks = [*dict.fromkeys(case.task for case in CASES), "start"]
    parser.add_argument("--only", choices=tasks, action="append", help="this section alone; can be repeated")
    parser.add_argument("--all-sizes", action="store_true", help=f"{', '.join(LARGE)} too: minutes more, 20 GiB")
    parser.add_argument("--no-peer", action="store_true", help="without effdet, and without installing it")
    kept = "file to write; by default BENCHMARKS.md for complete runs, none with --quick or --no-peer"
    parser.add_argument("--out", type=Path, help=kept)
    arguments = parser.parse_args(given)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; it must be at least 1")
    if arguments.out is None and not arguments.quick and not arguments.no_peer:
        arguments.out = ROOT / "BENCHMARKS.md"
    arguments.only = arguments.only or tasks
    return arguments


def main(given: list[str] | None = None) -> int:
    """Run the benchmark; 1 if a side failed, or if two sides do not compute the same."""
    arguments = parse_arguments(given)
    peer = None if arguments.no_peer else peer_python()
    machine = Hardware.read()
    if machine.was_busy:
        say(f"warning: the machine is busy (load {machine.load:.1f}); absolute figures will be too slow")
    command = "python " + " ".join(["benchmarks/run.py", *(sys.argv[1:] if given is None else given)])
    failed = False
    with tempfile.TemporaryDirectory(prefix="efficientdet-bench-") as folder:
        bench = Bench(Files(Path(folder)), peer)
        for task in dict.fromkeys(arguments.only):
            if task == "accuracy" and (peer is None or not PEOPLE.is_dir()):
                reason = f"there is no dataset at {PEOPLE}" if peer is not None else "it compares with effdet"
                say(f"accuracy: left out, and not written: {reason}")
                continue
            rounds = arguments.rounds or (2 if arguments.quick else START_ROUNDS)
            try:
                results = run_task(task, chosen_cases(arguments), bench, rounds)
            except EfficientDetError as error:
                say(f"error: {task}: not written: {error}")
                failed = True
                continue
            text = report.section(results, machine, command, arguments.quick)
            print(text, flush=True)
            if arguments.out is not None:  # after each section: what was measured stays, whatever comes
                report.write(arguments.out, task, text, results)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
