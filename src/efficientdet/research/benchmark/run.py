"""benchmark: every model, backend, precision and batch size, with the peers in the same rounds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientdet.cache import cache_dir
from efficientdet.errors import EfficientDetError, SettingError, unknown_name
from efficientdet.inference.engines.choose import BACKENDS, OFFERED, PRECISIONS
from efficientdet.research.benchmark import effdet_side_path
from efficientdet.research.benchmark.floors import TYPES, network_floors
from efficientdet.research.benchmark.hardware import Hardware
from efficientdet.research.benchmark.processes import SideError, Worker, settled, take_turns
from efficientdet.research.benchmark.results import Benchmark, Ratio, Row, ratio
from efficientdet.research.benchmark.sources import Model, choose_pictures, open_model, peer_python, peer_weights

OUR_SIDES = "efficientdet.research.benchmark"
EFFDET = "effdet"


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure.

    Attributes:
        models: of the family (with random weights), bundled, or files that `load` takes.
        backends: `auto` and those of `engines.BACKENDS`.
        precisions: of `engines.PRECISIONS`.
        batch_sizes: pictures at a time.
        image_size: side of the input; None for each model's own.
        pictures: a folder or file; None for a sample picture.
        rounds: how often the sides take turns.
        iterations: predictions a round.
        threads: None for torch's choice.
        device: `cpu` or `cuda`.
        peers: `effdet`, or paths of ONNX files.
        peer_python: the python that has effdet; None to look for one, see `sources.peer_python`.
        score_threshold: of the post-processing.
    """

    models: tuple[str, ...]
    backends: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ("fp32",)
    batch_sizes: tuple[int, ...] = (1,)
    image_size: int | None = None
    pictures: str | None = None
    rounds: int = 7
    iterations: int = 3
    threads: int | None = None
    device: str = "cpu"
    peers: tuple[str, ...] = ()
    peer_python: str | None = None
    score_threshold: float = 0.05

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            UnknownNameError: a backend or precision is not known.
            SettingError: a number is out of range, a list is empty, or a peer is no file; names it.
        """
        for kind, given, known in (
            ("backend", self.backends, ("auto", *BACKENDS)), ("precision", self.precisions, PRECISIONS),
        ):  # fmt: skip
            for name in given:
                if name not in known:
                    raise unknown_name(kind, name, known)
        for name in ("models", "backends", "precisions", "batch_sizes"):
            if not getattr(self, name):
                raise SettingError(f"{name} is empty; there is nothing to measure")
        numbers = {"rounds": (self.rounds,), "iterations": (self.iterations,), "batch_sizes": self.batch_sizes}
        numbers["threads"] = () if self.threads is None else (self.threads,)
        for name, values in numbers.items():
            if any(value < 1 for value in values):
                raise SettingError(f"{name} is {', '.join(map(str, values))}; it must be at least 1")
        for peer in self.peers:
            if peer != EFFDET and not Path(peer).is_file():
                raise SettingError(f"peer '{peer}' is neither '{EFFDET}' nor a file")


@dataclass(frozen=True)
class _Side:
    """A process to start."""

    name: str
    command: tuple[str, ...]
    case: dict[str, Any]
    is_peer: bool
    precision: str


def benchmark(settings: BenchmarkSettings, say: Callable[[str], None] = lambda text: None) -> Benchmark:
    """Measure.

    Args:
        settings: what.
        say: takes lines of progress.

    Returns:
        The rows, and the failures of sides that did not run: these stop nothing.

    Raises:
        UnknownNameError: a model is not known.
        WeightsError: a model's file cannot be read.
        ImageError: there is no picture.
        SettingError: effdet is asked for and not there; says how to install it.
    """
    hardware = Hardware.read(settings.device)
    python = peer_python(settings.peer_python) if EFFDET in settings.peers else None
    found = Benchmark(hardware, [], [], [], [], dataclasses.asdict(settings))
    if hardware.was_busy:
        found.notes.append(f"the machine was busy (load {hardware.load:.1f}): absolute times are too long")
    with tempfile.TemporaryDirectory(prefix="efficientdet-benchmark-") as name:
        folder = Path(name)
        pictures = choose_pictures(settings.pictures, folder)
        for wanted in settings.models:
            model = open_model(wanted, settings.image_size, pictures[0], folder)
            if model.is_random:
                found.notes.append(f"{wanted}: random weights, scaled to find as much as trained ones")
            for batch in settings.batch_sizes:
                say(f"{wanted}, batch {batch}")
                chosen = list(itertools.islice(itertools.cycle(pictures), batch))
                sides = _our_sides(settings, model, chosen, found.notes)
                sides += _peer_sides(settings, model, chosen, folder, python, found.failures)
                _measure(settings, model, batch, sides, folder, found, say)
    return found


def _our_sides(settings: BenchmarkSettings, model: Model, pictures: list[str], notes: list[str]) -> list[_Side]:
    sides = []
    for backend, precision in itertools.product(settings.backends, settings.precisions):
        if backend != "auto" and precision not in OFFERED[backend]:
            note = f"{backend} does not offer {precision}: left out"
            notes.extend([note] if note not in notes else [])
            continue
        case = {
            "model": model.path, "backend": backend, "precision": precision, "pictures": pictures,
            "image_size": settings.image_size, "threads": settings.threads, "device": settings.device,
            "postprocess": {"score_threshold": settings.score_threshold},
        }  # fmt: skip
        command = (sys.executable, "-m", f"{OUR_SIDES}.engine_side")
        sides.append(_Side(f"{backend} {precision}", command, case, False, precision))
    return sides


def _peer_sides(
    settings: BenchmarkSettings, model: Model, pictures: list[str], folder: Path, python: str | None,
    failures: list[str],
) -> list[_Side]:  # fmt: skip
    sides = []
    case: dict[str, Any]
    common = {"pictures": pictures, "threads": settings.threads}
    for peer in settings.peers:
        if peer != EFFDET:
            case = {**common, "file": peer, "model": model.path, "image_size": settings.image_size}
            command = (sys.executable, "-m", f"{OUR_SIDES}.onnx_side")
            sides.append(_Side(Path(peer).name, command, case, True, "fp32"))
            continue
        try:
            weights = peer_weights(model, folder)
        except EfficientDetError as error:
            failures.append(f"effdet: {error}")
            continue
        case = {
            **common, "model": model.spec.name, "weights": str(weights), "num_classes": model.num_classes,
            "size": model.image_size[0], "batch": len(pictures), "layout": "channels_last",
            "mean": list(model.preprocessing.mean), "std": list(model.preprocessing.std),
        }  # fmt: skip
        sides.append(_Side("effdet, channels_last", (str(python), str(effdet_side_path())), case, True, "fp32"))
    return sides


def _measure(
    settings: BenchmarkSettings, model: Model, batch: int, sides: list[_Side], folder: Path, found: Benchmark,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Let the sides of a model and batch size take turns, and add what they measure."""
    cache = folder / "cache" if model.is_random else cache_dir()
    environment = {"EFFICIENTDET_CACHE": str(cache)}
    with ExitStack() as stack:
        started: dict[str, tuple[_Side, Worker]] = {}
        for side in sides:
            say(f"  starting {side.name}")
            try:
                start = functools.partial(Worker, side.name, side.command, side.case, environment)
                worker = start() if side.is_peer else settled(start, cache / "engines")
            except SideError as error:
                found.failures.append(f"{model.name}, batch {batch}: {error}")
                continue
            stack.callback(worker.close)
            started[side.name] = side, worker
        if not started:
            return
        floor = _floor_worker(settings, stack)
        workers = [worker for _, worker in started.values()]

        def failed(worker: Worker, error: SideError) -> None:
            found.failures.append(f"{model.name}, batch {batch}: {error}")
            started.pop(worker.label, None)

        take_turns([*workers, floor], settings.rounds, settings.iterations, say=say, failed=failed)
        floors = {name: min(floor.times(name)) for name in (*settings.precisions, "fp32", "copy") if floor.rounds}
        rows = {name: _row(model, batch, side, worker, floors) for name, (side, worker) in started.items()}
    found.rows.extend(rows.values())
    found.ratios.extend(_ratios([(side, rows[name]) for name, (side, _) in started.items()]))


def _floor_worker(settings: BenchmarkSettings, stack: ExitStack) -> Worker:
    case = {"precisions": settings.precisions, "threads": settings.threads, "device": settings.device}
    worker = Worker("floors", (sys.executable, "-m", f"{OUR_SIDES}.floors"), case)
    stack.callback(worker.close)
    return worker


def _row(model: Model, batch: int, side: _Side, worker: Worker, floors: dict[str, float]) -> Row:
    size = tuple(worker.facts.get("input_size", model.image_size))
    precision = worker.facts.get("precision", side.precision)
    floor = None
    if precision in TYPES and precision in floors:
        floor = max(network_floors(model.spec, model.num_classes, batch, size, precision, floors))
    backend = side.name if side.is_peer else worker.facts["backend"]
    return Row.of(
        worker, model=model.name, backend=backend, precision=precision, batch=batch, input_size=(size[0], size[1]),
        floor_ms=None if side.is_peer and Path(side.name).suffix == ".onnx" else floor,
    )  # fmt: skip


def _ratios(rows: list[tuple[_Side, Row]]) -> list[Ratio]:
    ours = [row for side, row in rows if not side.is_peer]
    return [ratio(our, peer) for our in ours for side, peer in rows if side.is_peer]
