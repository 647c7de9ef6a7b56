"""This package's side of the benchmark: run.py starts it, see worker.py."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from worker import NUM_CLASSES, Measure, Parts, serve, timed_total, training_batch

import efficientdet
from efficientdet.inference import detector as detector_module
from efficientdet.inference.detector import Detector
from efficientdet.network.efficientdet import EfficientDet, create_model
from efficientdet.training.config import TrainConfig
from efficientdet.training.losses import detection_loss
from efficientdet.training.schedule import build_optimiser
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing
from efficientdet.weights.foreign import load_foreign


def build(case: dict[str, Any]) -> EfficientDet:
    """The network, with the weights that the peer has too."""
    model = create_model(case["model"], NUM_CLASSES)
    load_foreign(model, torch.load(case["weights"], weights_only=True), source="effdet")
    return model


def training(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Forward, matching and losses, backward, optimiser."""
    model = build(case).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = build_optimiser(model, TrainConfig(learning_rate=case["learning_rate"]))
    pixels, boxes_xyxy, labels = map(torch.from_numpy, training_batch(case["batch"], case["size"]))
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if case["precision"] == "bf16" else nullcontext():
            class_logits, box_deltas = model(pixels)
            anchors = model.anchors((case["size"], case["size"]))
            loss = detection_loss(class_logits, box_deltas, anchors, list(boxes_xyxy), list(labels)).total
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return float(loss.detach())

    return timed_total(step), {"loss": step()}


def predicting(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """`Detector.predict`, from the file to Detections."""
    model = build(case)
    info = CheckpointInfo(
        spec=model.spec,
        class_names=tuple(f"class {label}" for label in range(NUM_CLASSES)),
        category_ids=tuple(range(NUM_CLASSES)),
        preprocessing=default_preprocessing(model.spec),
    )
    detector = Detector(model, info, device="cpu", image_size=case["size"], score_threshold=case["score_threshold"])
    found = detector.predict(case["picture"])
    parts = Parts()
    parts.watch(detector_module, "read", "decode")
    parts.watch(detector_module, "prepare", "preprocess")
    parts.watch(detector.model, "forward", "network")
    parts.watch(detector_module, "postprocess", "postprocess")
    rows = [
        [*box, score, label]
        for box, score, label in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]
    return parts.timed(lambda: detector.predict(case["picture"])), {
        "detections": rows, "score_threshold": case["score_threshold"],
    }  # fmt: skip


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `worker.serve`."""
    measure, facts = (training if case["task"] == "train" else predicting)(case)
    versions = {"efficientdet": efficientdet.__version__, "torch": torch.__version__}
    return measure, {**facts, "versions": versions, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(make)
