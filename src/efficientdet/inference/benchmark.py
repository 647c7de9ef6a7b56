"""benchmark: how fast models run on this machine, by backend, precision and batch size.

Everything runs in this process and takes turns, A B C A B C, so that a machine that slows down slows all of them. What
is measured is `Detector.predict`, as users call it; `Detector.timer` tells where its time goes.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image
from typing_extensions import Unpack

from efficientdet.errors import EfficientDetError, MissingExtraError
from efficientdet.family import MODELS
from efficientdet.images.find import find_images, sample_image
from efficientdet.images.read import image_size as size_of_image
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.hardware import Hardware
from efficientdet.inference.settings import OFFERED, BenchmarkSettings, DetectorOptions
from efficientdet.inference.timing import TYPES, MachineSpeed, network_floor, stopwatch
from efficientdet.weights.create import random_model
from efficientdet.weights.names import find_weights

# The parts of a prediction, in order, as `Detector.timer` names them.
PARTS = ("decode", "preprocess", "network", "postprocess")
SAMPLE_SIZE = (640, 480)


class Spread(NamedTuple):
    """Median, smallest and largest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one measurement."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """`12.3 (11.9-14.0)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


@dataclass(frozen=True)
class Row:
    """What was measured of one model, backend, precision and batch size.

    Attributes:
        model: the name that the user gave.
        backend: what ran the network.
        precision: precision of its arithmetic.
        batch_size: images predicted together.
        input_size: (height, width) of the network's input for the first image.
        total: milliseconds of `Detector.predict`, for the whole batch.
        parts: median milliseconds by the names in `PARTS`; of images that run beside each other, one on each core, the
            sum over the cores divided by their number.
        floor_ms: the shortest time in which this machine could run the network; None where it is not known (int8).
        rounds: median total of each round.
    """

    model: str
    backend: str
    precision: str
    batch_size: int
    input_size: tuple[int, int]
    total: Spread
    parts: dict[str, float]
    floor_ms: float | None
    rounds: list[float]

    @property
    def images_per_second(self) -> float:
        """Throughput, from files to boxes."""
        return 1000 * self.batch_size / self.total.median

    @property
    def over_floor(self) -> float | None:
        """The network's time over the floor's."""
        return self.parts["network"] / self.floor_ms if self.floor_ms else None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        derived = {"images_per_second": self.images_per_second, "over_floor": self.over_floor}
        return {**dataclasses.asdict(self), "total": self.total._asdict(), **derived}

    def table_row(self) -> dict[str, Any]:
        """The columns of the table, rounded."""
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "batch": self.batch_size,
            "input": "x".join(map(str, self.input_size)),
            "images/s": f"{self.images_per_second:.1f}",
            "total ms": self.total.text(1),
            **{part: f"{self.parts[part]:.1f}" for part in PARTS},
            "x floor": None if self.over_floor is None else f"{self.over_floor:.1f}",
        }


@dataclass(frozen=True)
class Benchmark:
    """The result of a benchmark.

    Attributes:
        hardware: the machine.
        settings: what was asked for.
        rows: one for each model, backend, precision and batch size.
        notes: what a reader of the rows must know.
        failures: what could not be measured, and why.
    """

    hardware: Hardware
    settings: BenchmarkSettings
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; a spread is an object with median, low and high."""
        return {
            "hardware": self.hardware.to_dict(),
            "settings": dataclasses.asdict(self.settings),
            "rows": [row.to_dict() for row in self.rows],
            "notes": self.notes,
            "failures": self.failures,
        }


def benchmark(
    models: Sequence[str],
    settings: BenchmarkSettings | None = None,
    progress: Callable[[str], None] = lambda line: None,
    **options: Unpack[DetectorOptions],
) -> Benchmark:
    """Measure models side by side.

    Args:
        models: what `load` takes; a name of the family (`d0`, `lite0`, ...) stands for random weights, which need no
            download and score like trained ones.
        settings: what to measure.
        progress: takes a line a round.
        **options: settings of the detectors; backends and precisions are those of `settings`.

    Returns:
        The rows; a backend that cannot run is a failure there, and the others go on.

    Raises:
        UnknownNameError: a model is not known.
        WeightsError: a model's file cannot be read.
        ImageError: there is no image.
        SettingError: a setting of the detectors is unknown or out of range.
    """
    settings = settings or BenchmarkSettings()
    with thread_number(settings.threads):
        found = Benchmark(Hardware.read(options.get("device", "auto")), settings)
        images = (
            [sample_jpeg()] if settings.images is None else [str(one) for one in find_images([settings.images]).images]
        )
        sides = [side for name in models for side in _sides(name, images, found, options)]
        machine = MachineSpeed(sides[0].detector.device, settings.precisions) if sides else None
        for number in range(1, settings.rounds + 1):
            for side in sides:
                side.measure(settings.iterations)
                progress(f"round {number}/{settings.rounds}, {side}: {side.rounds[-1]:.1f} ms")
            if machine is not None:
                machine.measure()
        found.rows.extend(side.row(machine) for side in sides if machine is not None)
    return found


@contextmanager
def thread_number(threads: int | None) -> Iterator[None]:
    """Let torch, and with it every engine that is opened, compute with this many threads; None for its own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sample_jpeg() -> bytes:
    """A JPEG file of 640x480 pixels: matplotlib's sample portrait, or a Mandelbrot set where there is no matplotlib."""
    try:
        image = Image.open(sample_image()).convert("RGB").resize(SAMPLE_SIZE)
    except MissingExtraError:
        image = Image.effect_mandelbrot(SAMPLE_SIZE, (-2.2, -1.2, 1.0, 1.2), 20).convert("RGB")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


class _Side:
    """A detector and a batch of images that it predicts again and again."""

    def __init__(self, model: str, detector: Detector, images: list[Any]) -> None:
        self.model, self.detector, self.images = model, detector, images
        self.times: list[dict[str, float]] = []
        self.rounds: list[float] = []
        is_shared = len(images) > 1 and detector.engine.shared is not None
        self.at_once = min(torch.get_num_threads(), len(images)) if is_shared else 1

    def __str__(self) -> str:
        return f"{self.model}, {self.detector.engine}, batch {len(self.images)}"

    def measure(self, iterations: int) -> None:
        """Predict once to warm the caches, and then some times with the clock beside it."""
        self._predict()
        start = len(self.times)
        for _ in range(iterations):
            spent: list[tuple[str, float]] = []  # threads may append at once
            whole = stopwatch(spent, self.detector.device)
            self.detector.timer = whole
            try:
                with whole("total"):
                    self._predict()
            finally:
                self.detector.timer = None
            sums = {part: sum(ms for name, ms in spent if name == part) / self.at_once for part in PARTS}
            self.times.append({**sums, "total": spent[-1][1]})
        self.rounds.append(median(times["total"] for times in self.times[start:]))

    def _predict(self) -> None:
        if len(self.images) == 1:
            self.detector.predict(self.images[0])
        else:
            self.detector.predict(self.images, batch_size=len(self.images))

    def row(self, machine: MachineSpeed) -> Row:
        """What was measured."""
        engine = self.detector.engine
        sizes = [self.detector.input_size(size_of_image(image)) for image in self.images]
        floor = None
        if engine.precision in TYPES:
            spec, classes = self.detector.info.spec, len(self.detector.class_names)
            floor = network_floor(spec, classes, sizes, engine.precision, machine.best())
        return Row(
            model=self.model,
            backend=engine.backend,
            precision=engine.precision,
            batch_size=len(self.images),
            input_size=sizes[0],
            total=Spread.of([times["total"] for times in self.times]),
            parts={part: median(times[part] for times in self.times) for part in PARTS},
            floor_ms=floor,
            rounds=self.rounds,
        )


def _sides(name: str, images: Sequence[Any], found: Benchmark, options: DetectorOptions) -> list[_Side]:
    """Open a model in every backend and precision; what fails goes into `found.failures`."""
    settings, sides = found.settings, []
    is_random = name in MODELS
    if is_random:
        size = options.get("image_size")
        random = random_model(name, max(size) if isinstance(size, tuple) else size, images[0])
        found.notes.append(f"{name}: random weights that score like trained ones")
    else:
        find_weights(name)  # a wrong name is no failure of a backend
    for backend, precision in itertools.product(settings.backends, settings.precisions):
        if backend != "auto" and precision not in OFFERED[backend]:
            found.notes.append(f"{name}: {backend} does not offer {precision}; left out")
            continue
        chosen: Any = {**options, "backend": backend, "precision": precision}
        try:
            detector = Detector(*random, **chosen) if is_random else load(name, **chosen)
            for batch_size in settings.batch_sizes:
                side = _Side(name, detector, list(itertools.islice(itertools.cycle(images), batch_size)))
                side._predict()  # builds the engine
                sides.append(side)
        except EfficientDetError as error:
            found.failures.append(f"{name}, {backend} {precision}: {error}")
    return sides
