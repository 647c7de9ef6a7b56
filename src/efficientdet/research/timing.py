"""Times of networks: several in turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch

from efficientdet.family import ModelSpec
from efficientdet.inference.roofline import stopwatch
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet

WARMUP_ROUNDS = 2
LATENCY_ROUNDS = 5


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
