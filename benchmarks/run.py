"""Compare this package with effdet 0.4.1 in one run, side by side, and write BENCHMARKS.md: `make bench`.

Each measured side is a process of its own that waits while the others work; they take turns, A B A B, so that a machine
that slows down slows all of them, and every round gives ratios of its own. What is measured stands in cases.py.
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
from cases import CASES, LARGE, NUM_CLASSES, Case, Side
from files import Files

from efficientdet.errors import EfficientDetError
from efficientdet.family import MODELS
from efficientdet.research.benchmark import effdet_side_path
from efficientdet.research.benchmark.hardware import Hardware
from efficientdet.research.benchmark.processes import SideError, Worker, settled, take_turns
from efficientdet.weights.checkpoint import default_preprocessing

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER_FOLDER = ROOT / ".bench" / "effdet"
PEER_PYTHON = PEER_FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PEER_PACKAGES = {
    "torch": "2.13.0", "torchvision": "0.28.0", "effdet": "0.4.1", "timm": "1.0.31", "onnx": "1.23.2",
    "onnxruntime": "1.32.0",
}  # fmt: skip
# Engines that were built for an earlier run serve again.
ENGINE_CACHE = ROOT / ".bench" / "cache"
# This compares CPUs: a GPU, if there is one, is hidden from both. The peer finds the conversation beside its script.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "EFFICIENTDET_CACHE": str(ENGINE_CACHE), "EFFICIENTDET_BACKEND": "auto",
}  # fmt: skip
PEER_ENVIRONMENT = {**ENVIRONMENT, "PYTHONPATH": str(effdet_side_path().parent)}


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


def start(side: Side, case: Case, files: Files) -> Worker:
    """Start a side's process: what runs it, and what it is told."""
    command, environment = {
        "engine": ((sys.executable, "-m", "efficientdet.research.benchmark.engine_side"), ENVIRONMENT),
        "ours": ((sys.executable, str(HERE / "ours.py")), ENVIRONMENT),
        "effdet": ((str(PEER_PYTHON), str(effdet_side_path())), PEER_ENVIRONMENT),
        "peer": ((str(PEER_PYTHON), str(HERE / "peer_effdet.py")), PEER_ENVIRONMENT),
    }[side.program]
    begin = functools.partial(Worker, side.label, command, told(side, case, files), environment)
    return begin() if side.is_peer else settled(begin, ENGINE_CACHE / "engines")


def told(side: Side, case: Case, files: Files) -> dict[str, Any]:
    """The case as a side's program takes it."""
    settings = dict(side.settings)
    name = settings.get("model") or case.settings["model"]
    size = case.settings.get("size") or MODELS[name].image_size
    if side.program == "engine":
        is_int8 = settings.get("precision") == "int8"
        path = files.int8(name, size) if is_int8 else files.checkpoint(name, size)
        if is_int8:  # the file says its backend itself
            settings["precision"] = settings.pop("rest")
        return {**settings, "model": path, "image_size": size, "pictures": [str(files.picture)]}
    if case.task == "folder":
        pictures = files.pictures(case.settings["pictures"])
        own = {"model": files.checkpoint(name, size), "image_size": size, "pictures": pictures}
        return {"task": case.task, "batch": case.settings["batch"], **settings, **own}
    common = {"task": case.task, **case.settings, "weights": files.effdet_weights(name, size), **settings}
    pixels = default_preprocessing(MODELS[name])
    colors = {"mean": pixels.mean, "std": pixels.std}
    return {**common, **colors, "num_classes": NUM_CLASSES, "pictures": [str(files.picture)]}


@contextmanager
def started(case: Case, files: Files, with_peer: bool) -> Iterator[tuple[list[tuple[Side, Worker]], list[str]]]:
    """Start a case's sides, ours first; of each group of peers only the fastest stays. Each has run when it comes.

    Gives the sides, and what is to be said of those that are not among them.
    """
    with ExitStack() as stack:
        workers: list[tuple[Side, Worker]] = []
        notes: list[str] = []
        for side in (side for side in case.sides if not side.is_peer):
            say(f"  starting {side.label}")
            try:
                worker = start(side, case, files)
            except EfficientDetError as error:
                say(f"  left out: {error}")
                notes.append(f"{side.label}: fails")
                continue
            workers.append((side, worker))
            stack.callback(worker.close)
        if not workers:
            raise SideError(f"{case.title}: nothing of ours runs")
        peers = [side for side in case.sides if side.is_peer and with_peer]
        for group in dict.fromkeys(side.group for side in peers):
            best = _race([side for side in peers if side.group == group], case, files, notes)
            if best is not None:
                workers.append(best)
                stack.callback(best[1].close)
        if peers and not any(side.is_peer for side, _ in workers):
            raise SideError("no variant of effdet runs; to measure without it: --no-peer")
        yield workers, notes


def _race(sides: list[Side], case: Case, files: Files, notes: list[str]) -> tuple[Side, Worker] | None:
    """The fastest of some variants of the peer; the others are ended. One that fails is left out and noted."""
    best: tuple[Side, Worker] | None = None
    for side in sides:
        say(f"  starting {side.label}")
        try:
            worker = start(side, case, files)
            if len(sides) == 1:
                return side, worker
            worker.measure(case.iterations)
            worker.measure(case.iterations)
        except SideError as error:
            say(f"  left out: {error}")
            notes.append(f"{side.label}: fails")
            continue
        notes.append(f"{side.label}: {min(worker.round_medians()):.0f} ms")
        say(f"  race: {notes[-1]}")
        slower = worker
        if best is None or min(worker.round_medians()) < min(best[1].round_medians()):
            slower, best = (best or (side, worker))[1], (side, worker)
        if slower is not best[1]:
            slower.close()
    if best is not None:
        best[1].rounds.clear()
    return best


def run_case(case: Case, files: Files, with_peer: bool) -> report.Result:
    """Measure a case: all sides in turn, round after round."""
    say(f"{case.title}")
    with started(case, files, with_peer) as (sides, notes):
        take_turns([worker for _, worker in sides], case.rounds, case.iterations, case.seconds, say)
        return report.Result(
            task=case.task,
            title=case.title,
            settings=case.settings,
            notes=notes,
            sides=[
                report.SideResult(side.label, side, worker.rounds, worker.peak_mib, worker.facts)
                for side, worker in sides
            ],
        )


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases that the command line asks for."""
    cases = [case for case in CASES if not arguments.only or case.task in arguments.only]
    if not arguments.all_sizes:
        kept = [tuple(side for side in case.sides if side.label not in LARGE) for case in cases]
        cases = [replace(case, sides=sides) for case, sides in zip(cases, kept, strict=True)]
    if arguments.quick:
        cases = [case.made_quick() for case in cases]
    return [replace(case, rounds=arguments.rounds) for case in cases] if arguments.rounds else cases


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="how often the sides take turns; by default each case's own number")
    parser.add_argument("--quick", action="store_true", help="small inputs, two rounds: does everything work?")
    tasks = list(dict.fromkeys(case.task for case in CASES))
    parser.add_argument("--only", choices=tasks, action="append", help="this part alone; can be repeated")
    parser.add_argument("--all-sizes", action="store_true", help=f"{', '.join(LARGE)} too: minutes more, 20 GiB")
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
    if not arguments.no_peer:
        install_peer()
    machine = Hardware.read()
    if machine.was_busy:
        say(f"warning: the machine is busy (load {machine.load:.1f}); absolute figures will be too slow")
    command = "python " + " ".join(["benchmarks/run.py", *sys.argv[1:]])
    results: list[report.Result] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="efficientdet-bench-") as folder:
        files = Files(Path(folder))
        for case in chosen_cases(arguments):
            try:
                results.append(run_case(case, files, not arguments.no_peer))
            except EfficientDetError as error:
                say(f"error: {error}")
                failed = True
                continue
            text = report.sections([one for one in results if one.task == case.task], machine, command, arguments.out)
            print("\n\n".join(text.values()), flush=True)
            if arguments.out is not None:  # after each case: what was measured stays, whatever comes
                report.write(arguments.out, text)
    failed = failed or not all(check.agrees for result in results for check in report.checks(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
