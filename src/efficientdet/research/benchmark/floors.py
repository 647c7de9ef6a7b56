"""What this machine can do at best, and what a network needs: python -m efficientdet.research.benchmark.floors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from efficientdet.family import ModelSpec
from efficientdet.network.count import count
from efficientdet.research.benchmark.conversation import Measure, Stopwatch, serve

# Side of the matrices: large enough that arithmetic is all that counts.
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
COPIED_BYTES = 2**28
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`.

    Args:
        case: `precisions`, `device`, and `threads` where they are not torch's own.

    Returns:
        What to measure: milliseconds for a GMAC (10**9 multiply-adds) by precision, and for a GB copied, as `copy`.
    """
    if case.get("threads"):
        torch.set_num_threads(case["threads"])
    device = torch.device(case.get("device", "cpu"))
    side = MATRIX_SIDE.get(device.type, MATRIX_SIDE["cpu"])
    # fp32 always: where a narrower type has no instructions of its own, it does not make the arithmetic faster.
    matrices = {
        name: torch.full((side, side), 0.5, dtype=TYPES[name], device=device)
        for name in dict.fromkeys(["fp32", *case["precisions"]])
    }
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        watch = Stopwatch(torch.cuda.synchronize) if device.type == "cuda" else Stopwatch()
        for name, matrix in matrices.items():
            with watch.part(name):
                matrix @ matrix
            watch.milliseconds[name] /= side**3 / 1e9
        with watch.part("copy"):
            target.copy_(source)
        watch.milliseconds["copy"] /= 2 * COPIED_BYTES / 1e9  # read once and written once
        return {**watch.milliseconds, "total": sum(watch.milliseconds.values())}

    measure()
    return measure, {}


def network_floors(
    spec: ModelSpec, num_classes: int, batch: int, size: Sequence[int], precision: str, measured: dict[str, float]
) -> tuple[float, float]:
    """The least milliseconds in which a machine could run a network.

    Args:
        spec: the network.
        num_classes: of its class head.
        batch: pictures at a time.
        size: (height, width) of the input.
        precision: one of `TYPES`.
        measured: milliseconds a GMAC by precision, and a GB by `copy`.

    Returns:
        Of the arithmetic: every multiply-add of the convolutions at the speed of a large matrix product. Of the memory:
        weights, input and outputs cross it once at the speed of a large copy, and all maps between stay in the caches.
    """
    parameters, multiply_adds = _count(spec, num_classes, size)
    anchors = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in spec.strides) * spec.anchors_per_cell
    numbers = parameters + batch * (3 * size[0] * size[1] + anchors * (num_classes + 4))
    arithmetic = min(measured[precision], measured["fp32"]) * batch * multiply_adds / 1e9
    return arithmetic, measured["copy"] * numbers * BYTES[precision] / 1e9


def _count(spec: ModelSpec, num_classes: int, size: Sequence[int]) -> tuple[int, float]:
    """Parameters and multiply-adds of an input of (height, width), by way of a square of the same area."""
    coarsest = spec.strides[-1]
    side = max(round((size[0] * size[1]) ** 0.5 / coarsest), 1) * coarsest if size[0] != size[1] else size[0]
    parameters, multiply_adds = count(dataclasses.replace(spec, image_size=side), num_classes)
    return parameters, multiply_adds * size[0] * size[1] / side**2


def multiply_adds(spec: ModelSpec, num_classes: int, size: Sequence[int]) -> float:
    """Multiply-adds of the convolutions for one picture at an input of (height, width)."""
    return _count(spec, num_classes, size)[1]


if __name__ == "__main__":
    serve(make)
