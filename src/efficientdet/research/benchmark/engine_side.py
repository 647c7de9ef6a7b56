"""This package's side of a benchmark: python -m efficientdet.research.benchmark.engine_side."""

from __future__ import annotations

from typing import Any

import torch

from efficientdet.inference.detector import Detector, load
from efficientdet.research.benchmark.conversation import Measure, Stopwatch, serve
from efficientdet.research.benchmark.steps import boxes_of, input_batch, predict_in_steps, read_all, stopwatch
from efficientdet.version import __version__


def open_detector(case: dict[str, Any]) -> Detector:
    """The detector that a case names, with the number of threads that it asks for."""
    if case.get("threads"):
        torch.set_num_threads(case["threads"])
    choices = {name: case[name] for name in ("backend", "precision") if case.get(name)}
    return load(
        case["model"], device=case.get("device", "cpu"), image_size=case.get("image_size"),
        rectangular=case.get("rectangular", False), **choices, **case.get("postprocess", {}),
    )  # fmt: skip


def whole(detector: Detector, sources: list[str]) -> tuple[Measure, dict[str, Any]]:
    """From files to boxes: one picture by `Detector.predict` as users call it, and again in steps, for the parts.

    Of several pictures the steps are the whole, for `predict` may take a list apart again.
    """

    def measure() -> dict[str, float]:
        watch = Stopwatch()
        if len(sources) == 1:
            with watch.part("total"):
                detector.predict(sources[0])
            return {**watch.milliseconds, **predict_in_steps(detector, sources)[1]}
        with watch.part("total"):
            parts = predict_in_steps(detector, sources)[1]
        return {**watch.milliseconds, **parts}

    measure()
    found = detector.predict(sources[0])
    rows = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return measure, {"detections": [[*box, score, label] for box, score, label in rows]}


@torch.inference_mode()
def network(detector: Detector, sources: list[str]) -> tuple[Measure, dict[str, Any]]:
    """The network alone, on pictures that are ready."""
    pixels = input_batch(detector, read_all(detector, sources))[0]
    detector.engine.run(pixels)

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        watch = stopwatch(detector)
        with watch.part("total"):
            detector.engine.run(pixels)
        return watch.milliseconds

    return measure, {}


@torch.inference_mode()
def postprocessing(detector: Detector, sources: list[str]) -> tuple[Measure, dict[str, Any]]:
    """From raw outputs to boxes."""
    pictures = read_all(detector, sources)
    pixels, scales = input_batch(detector, pictures)
    outputs = detector.engine.run(pixels)

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        watch = stopwatch(detector)
        with watch.part("total"):
            boxes_of(detector, outputs, pixels, scales, pictures)
        return watch.milliseconds

    found = boxes_of(detector, outputs, pixels, scales, pictures)
    measure()
    count = int(found.counts[0])
    rows = zip(found.boxes_xyxy[0, :count].tolist(), found.scores[0].tolist(), found.labels[0].tolist(), strict=False)
    return measure, {"detections": [[*box, score, label] for box, score, label in rows]}


MEASURED = {"whole": whole, "network": network, "postprocess": postprocessing}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`.

    Args:
        case: `model`, `pictures` (of one batch), and as far as they are no defaults `backend`, `precision`, `device`,
            `image_size`, `rectangular`, `threads`, `postprocess` (settings by name), and `measured` (of `MEASURED`).

    Returns:
        What to measure; and facts: the engine, the size of the network's input, what was found in the first picture.
    """
    detector = open_detector(case)
    measure, facts = MEASURED[case.get("measured", "whole")](detector, case["pictures"])
    size = input_batch(detector, read_all(detector, case["pictures"]))[0].shape
    facts |= {
        "backend": detector.engine.backend,
        "precision": detector.engine.precision,
        "input_size": list(size[2:]),
        "score_threshold": detector.postprocess.score_threshold,
        "threads": torch.get_num_threads(),
        "versions": {"efficientdet": __version__, "torch": torch.__version__},
    }
    return measure, facts


if __name__ == "__main__":
    serve(make)
