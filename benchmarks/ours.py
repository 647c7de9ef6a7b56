"""This package's side of what its own `benchmark` does not measure, training and folders: run.py starts it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from training_batch import NUM_CLASSES, training_batch

import efficientdet
from efficientdet.inference.detector import load
from efficientdet.network.efficientdet import EfficientDet, build_model
from efficientdet.research.benchmark.conversation import Measure, Stopwatch, serve, timed_total
from efficientdet.research.benchmark.steps import input_batch, read_all
from efficientdet.training.config import TrainConfig
from efficientdet.training.losses import detection_loss
from efficientdet.training.memory import kept_memory
from efficientdet.training.schedule import build_optimizer
from efficientdet.weights.foreign import load_foreign

# Open until the process ends.
MEMORY = ExitStack()


def build(case: dict[str, Any]) -> EfficientDet:
    """The network, with the weights that the peer has too."""
    model = build_model(case["model"], NUM_CLASSES)
    load_foreign(model, torch.load(case["weights"], weights_only=True), source="effdet")
    return model


def training(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Forward, matching and losses, backward, optimizer; memory handled as in a run of `train` on a CPU."""
    MEMORY.enter_context(kept_memory())
    model = build(case).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(model, TrainConfig(learning_rate=case["learning_rate"]))
    pixels, boxes_xyxy, labels = map(torch.from_numpy, training_batch(case["batch"], case["size"]))
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if case["precision"] == "bf16" else nullcontext():
            class_logits, box_deltas = model(pixels)
            anchors = model.anchors((case["size"], case["size"]))
            loss = detection_loss(class_logits, box_deltas, anchors, list(boxes_xyxy), list(labels)).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return timed_total(step), {"loss": step()}


def folder(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """All pictures of a folder by `Detector.predict_many`; and as many ready images through the network alone."""
    detector = load(
        case["model"], device="cpu", backend=case["backend"], image_size=case["image_size"], score_threshold=0.05
    )
    paths, batch, cores = case["pictures"], case["batch"], torch.get_num_threads()
    # The network at its best: an image on each core where the engine can, as predict_many has it too; else in batches.
    run, threads, each = detector.engine.run_on_one_core, cores, 1
    if run is None or cores == 1:
        run, threads, each = detector.engine.run, 1, batch
    pixels = input_batch(detector, read_all(detector, paths[:each]))[0]

    @torch.inference_mode()
    def once(number: int) -> None:
        run(pixels)

    def network(images: int) -> float:
        """Milliseconds an image."""
        watch = Stopwatch()
        with ThreadPoolExecutor(threads) as pool, watch.part("network"):
            list(pool.map(once, range(images // each)))
        return watch.milliseconds["network"] / images

    def measure() -> dict[str, float]:
        some = max(len(paths) // 6 // each, 1) * each
        before = network(some)
        whole = timed_total(lambda: sum(len(found) for found in detector.predict_many(paths, batch_size=batch)))()
        # The machine may slow down meanwhile: the network alone is measured on both sides of it.
        return {**whole, "network": (before + network(some)) / 2 * len(paths)}

    network(2 * each * threads)
    list(detector.predict_many(paths[: 2 * batch], batch_size=batch))
    return measure, {"backend": detector.engine.backend}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`."""
    measure, facts = (training if case["task"] == "train" else folder)(case)
    versions = {"efficientdet": efficientdet.__version__, "torch": torch.__version__}
    return measure, {**facts, "versions": versions, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(make)
