"""Times of networks: several in turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from efficientdet.family import ModelSpec
from efficientdet.network.efficientdet import EfficientDet

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
    names, times = list(works), {name: list[float]() for name in works}
    with torch.inference_mode():
        for number in range(WARMUP_ROUNDS + rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                start = time.perf_counter()
                works[name]()
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: found[WARMUP_ROUNDS:] for name, found in times.items()}


def forward_ms(spec: ModelSpec, device: str = "cpu", rounds: int = LATENCY_ROUNDS) -> list[float]:
    """Milliseconds of forward passes of a network with fresh weights: PyTorch, float32, channels_last, batch 1.

    The input has the spec's size, the network 90 classes; boxes are not decoded.
    """
    model = EfficientDet(spec, 90).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.zeros(1, 3, spec.image_size, spec.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    return time_in_turns({spec.name: lambda: model(images)}, device, rounds)[spec.name]


def latency_ms(spec: ModelSpec, device: str = "cpu") -> float:
    """Median milliseconds of a forward pass; see `forward_ms`."""
    return statistics.median(forward_ms(spec, device))
