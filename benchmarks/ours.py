"""This package's side of a benchmark; run.py starts it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from conversation import Measure, Stopwatch, only, serve, timed_total, training_batch

from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load
from efficientdet.training.config import TrainConfig
from efficientdet.training.losses import detection_loss
from efficientdet.training.memory import kept_memory
from efficientdet.training.schedule import build_optimizer
from efficientdet.weights.checkpoint import load_checkpoint

# Open until the process ends.
MEMORY = ExitStack()


def training(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Forward, matching and losses, backward, optimizer; memory handled as in a run of `train` on a CPU."""
    MEMORY.enter_context(kept_memory())
    model = load_checkpoint(case["checkpoint"])[0].to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(model, TrainConfig(learning_rate=case["learning_rate"]))
    pixels, boxes_xyxy, labels = map(torch.from_numpy, training_batch(case["batch"], case["size"]))
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if case["precision"] == "bf16" else nullcontext():
            class_logits, box_deltas = model(pixels)
            anchors = model.anchors((case["size"], case["size"]))
            loss = detection_loss(class_logits, box_deltas, anchors, list(boxes_xyxy), list(labels)).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return timed_total(step), {"loss": step()}


def open_detector(case: dict[str, Any]) -> Detector:
    """The detector that a case names."""
    options = {name: case[name] for name in ("backend", "precision", "rectangular") if name in case}
    return load(case["checkpoint"], device="cpu", image_size=case["size"], **options, **case["postprocess"])


def predicting(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """`Detector.predict` of one image, whole and by part, as its timer tells."""
    detector, image = open_detector(case), case["images"][0]

    def measure() -> dict[str, float]:
        watch = Stopwatch()
        detector.timer = watch.part
        with watch.part("total"):
            detector.predict(image)
        return only(case.get("part", "total"), watch.milliseconds)

    measure()
    np.save(case["input_file"], letterbox(read(image), detector.image_size, detector.info.preprocessing)[0])
    found = [detector.predict(one) for one in case["images"]]
    rows = [zip(one.boxes_xyxy.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True) for one in found]
    facts = {
        "detections": [[[*box, score, label] for box, score, label in one] for one in rows],
        "engine": f"{detector.engine.backend} {detector.engine.precision}",
        "score_threshold": detector.postprocess.score_threshold,
    }
    return measure, facts


def network_alone(detector: Detector, batch: int) -> tuple[Callable[[int], float], int]:
    """A function of a number of ready inputs, to the network's milliseconds for each; and what divides the number.

    It is at its best: an image on each core where the engine can, as in `predict_many`; else in batches.
    """
    cores = torch.get_num_threads()
    run, threads, each = detector.engine.run_on_one_core, cores, 1
    if run is None or cores == 1:
        run, threads, each = detector.engine.run, 1, batch
    pixels = torch.randn(each, 3, *detector.image_size)

    @torch.inference_mode()
    def once(number: int) -> None:
        run(pixels)

    def network(images: int) -> float:
        """Milliseconds an image."""
        watch = Stopwatch()
        with ThreadPoolExecutor(threads) as pool, watch.part("network"):
            list(pool.map(once, range(images // each)))
        return watch.milliseconds["network"] / images

    network(2 * each * threads)
    return network, each


def folder(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """`Detector.predict_many` over a folder; and as many ready inputs through the network alone."""
    detector, paths, batch = open_detector(case), case["images"], case["batch"]
    network, each = network_alone(detector, batch)

    def measure() -> dict[str, float]:
        some = max(len(paths) // 6 // each, 1) * each
        before = network(some)
        whole = timed_total(lambda: sum(len(found) for found in detector.predict_many(paths, batch_size=batch)))()
        # The machine may slow down meanwhile: the network alone is measured on both sides of it.
        return {**whole, "network": (before + network(some)) / 2 * len(paths)}

    list(detector.predict_many(paths[: 2 * batch], batch_size=batch))
    return measure, {"engine": f"{detector.engine.backend} {detector.engine.precision}"}


MEASURED = {"train": training, "folder": folder}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`."""
    measure, facts = MEASURED.get(case["task"], predicting)(case)
    return measure, {**facts, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(make)
