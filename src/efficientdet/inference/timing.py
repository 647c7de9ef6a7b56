"""Times of networks, and the shortest possible ones: the roofline of this machine (Williams et al. 2009)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch

from efficientdet.family import ModelSpec, level_sizes
from efficientdet.network.count import count
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet

# Side of the multiplied matrices: so large that only the arithmetic counts.
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
COPIED_BYTES = 2**28
WARMUP_ROUNDS = 2
LATENCY_ROUNDS = 5
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def stopwatch(spent: list[tuple[str, float]], device: torch.device) -> Callable[[str], AbstractContextManager[None]]:
    """A `Detector.timer` that notes (part, milliseconds), in any thread; on a GPU it waits for what is queued there."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        wait()
        start = time.perf_counter()
        yield
        wait()
        spent.append((part, (time.perf_counter() - start) * 1000))

    return timed


def time_in_turns(works: Mapping[str, Callable[[], object]], device: str, rounds: int) -> dict[str, list[float]]:
    """Time pieces of work, one run of each in every round, after two rounds that are not timed.

    The order changes from round to round, so that none always follows the same other.

    Args:
        works: what to run, by name; inference mode is on.
        device: where it runs, such as `cpu`; a run ends when the device is done.
        rounds: number of timed rounds.

    Returns:
        Milliseconds of each round, by name.
    """
    names, spent = list(works), list[tuple[str, float]]()
    timed = stopwatch(spent, torch.device(device))
    with torch.inference_mode():
        for number in range(WARMUP_ROUNDS + rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                with timed(name):
                    works[name]()
    return {name: [ms for one, ms in spent if one == name][WARMUP_ROUNDS:] for name in names}


def forward_pass(spec: ModelSpec, device: str = "cpu", num_classes: int = COCO_SLOTS) -> Callable[[], object]:
    """A forward pass to be timed: a network with fresh weights in PyTorch, float32, channels_last, batch 1.

    The input has the spec's size; boxes are not decoded.
    """
    model = EfficientDet(spec, num_classes).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.zeros(1, 3, spec.image_size, spec.image_size, device=device)
    return partial(model, images.contiguous(memory_format=torch.channels_last))


def latency_ms(spec: ModelSpec, device: str = "cpu") -> float:
    """Median milliseconds of `forward_pass`."""
    times = time_in_turns({spec.name: forward_pass(spec, device)}, device, LATENCY_ROUNDS)
    return statistics.median(times[spec.name])


class MachineSpeed:
    """How fast the machine multiplies matrices, and copies memory."""

    def __init__(self, device: torch.device, precisions: Sequence[str]) -> None:
        side = MATRIX_SIDE.get(device.type, MATRIX_SIDE["cpu"])
        # fp32 always: a narrower type without instructions of its own makes the arithmetic no faster.
        names = dict.fromkeys(["fp32", *precisions])
        self.matrices = {name: torch.full((side, side), 0.5, dtype=TYPES[name], device=device) for name in names}
        self.source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
        self.target = torch.ones_like(self.source)
        self.spent: list[tuple[str, float]] = []
        self.measure()  # the first is slower
        self.spent.clear()

    @torch.inference_mode()
    def measure(self) -> None:
        """Multiply and copy once."""
        timed = stopwatch(self.spent, self.source.device)
        for name, matrix in self.matrices.items():
            with timed(name):
                matrix @ matrix
        with timed("copy"):
            self.target.copy_(self.source)

    def best(self) -> dict[str, float]:
        """The shortest measured: milliseconds for 10**9 multiply-adds by precision, and for a GB as `copy`."""
        shortest = {name: min(ms for one, ms in self.spent if one == name) for name in (*self.matrices, "copy")}
        copy = shortest.pop("copy") / (2 * COPIED_BYTES / 1e9)  # read once and written once
        return {name: ms / (len(self.matrices[name]) ** 3 / 1e9) for name, ms in shortest.items()} | {"copy": copy}


def network_floor(
    spec: ModelSpec, num_classes: int, sizes: Sequence[tuple[int, int]], precision: str, speed: dict[str, float]
) -> float:
    """The shortest time in which a machine could run a network on a batch of images.

    Args:
        spec: the network.
        num_classes: classes of its head.
        sizes: (height, width) of the input of each image.
        precision: one of `TYPES`.
        speed: milliseconds for 10**9 multiply-adds by precision, and for a GB through memory as `copy`.

    Returns:
        Milliseconds: the arithmetic's (every multiply-add of the convolutions at the speed of a large matrix product)
        or the memory's (weights, input and outputs cross it once; all maps between stay in the caches), whichever is
        longer.
    """
    multiply_adds, numbers, parameters = 0, 0, 0
    for size in sizes:
        parameters, counted = count(spec, num_classes, size)
        multiply_adds += counted
        anchors = sum(map(math.prod, level_sizes(size, spec.levels))) * spec.anchors_per_cell
        numbers += 3 * math.prod(size) + anchors * (num_classes + 4)
    arithmetic = min(speed[precision], speed["fp32"]) * multiply_adds / 1e9
    return max(arithmetic, speed["copy"] * (parameters + numbers) * TYPES[precision].itemsize / 1e9)
