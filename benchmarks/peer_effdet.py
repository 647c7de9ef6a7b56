"""The effdet package's side of the benchmark: runs in effdet's own environment; run.py starts it, see worker.py."""

from __future__ import annotations

import importlib.metadata
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from effdet import DetBenchTrain, bench, get_efficientdet_config  # type: ignore[import-not-found, unused-ignore]
from effdet.data import transforms  # type: ignore[import-not-found, unused-ignore]
from effdet.factory import create_model_from_config  # type: ignore[import-not-found, unused-ignore]
from PIL import Image
from torch import Tensor
from worker import NUM_CLASSES, Measure, Parts, serve, timed_total, training_batch


def build(case: dict[str, Any]) -> Any:
    """The network, with the weights that this package's side has too; stochastic depth off, as there."""
    config = get_efficientdet_config(f"tf_efficientdet_{case['model']}")
    config.backbone_args.drop_path_rate = 0.0
    size = (case["size"], case["size"])
    model = create_model_from_config(
        config, num_classes=NUM_CLASSES, pretrained=False, pretrained_backbone=False, image_size=size
    )
    model.load_state_dict(torch.load(case["weights"], weights_only=True), strict=True)
    return model.to(memory_format=layout(case))


def layout(case: dict[str, Any]) -> torch.memory_format:
    """How activations and kernels lie in memory."""
    return torch.channels_last if case["layout"] == "channels_last" else torch.contiguous_format


def training(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Forward, matching and losses, backward, optimiser."""
    model = DetBenchTrain(build(case), create_labeler=True).train()
    optimiser = torch.optim.SGD(
        model.parameters(), lr=case["learning_rate"], momentum=0.9, weight_decay=4e-5, foreach=True
    )
    pixels, boxes_xyxy, labels = map(torch.from_numpy, training_batch(case["batch"], case["size"]))
    pixels = pixels.contiguous(memory_format=layout(case))
    # effdet takes (y, x, y, x), and counts classes from 1.
    target = {"bbox": boxes_xyxy[..., [1, 0, 3, 2]].contiguous(), "cls": labels + 1}

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if case["precision"] == "bf16" else nullcontext():
            loss = model(pixels, target)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return timed_total(step), {"loss": step()}


class Predictor:
    """A request as effdet's validation makes it: its transform, its normalisation, its bench in pieces."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.layout = layout(case)
        self.bench = bench.DetBenchPredict(build(case)).eval()
        config = self.bench.config
        # A row of the configuration may lack them; then effdet's loader takes ImageNet's.
        mean = tuple(config.get("mean") or transforms.IMAGENET_DEFAULT_MEAN)
        std = tuple(config.get("std") or transforms.IMAGENET_DEFAULT_STD)
        self.mean = torch.tensor([255 * value for value in mean]).view(1, 3, 1, 1)
        self.std = torch.tensor([255 * value for value in std]).view(1, 3, 1, 1)
        fill = transforms.resolve_fill_color(config.get("fill_color") or "mean", mean)
        self.resize = transforms.ResizePad(target_size=case["size"], interpolation="bilinear", fill_color=fill)

    def decode(self, path: str) -> Any:
        """File to PIL image."""
        return Image.open(path).convert("RGB")

    def preprocess(self, image: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The network's input, the factor back to original pixels, and the original (width, height)."""
        resized, info = self.resize(image, {})
        pixels, info = transforms.ImageToNumpy()(resized, info)
        batch = torch.from_numpy(np.ascontiguousarray(pixels))[None].float().sub_(self.mean).div_(self.std)
        size = torch.tensor([image.size], dtype=torch.float32)
        return batch.contiguous(memory_format=self.layout), torch.tensor([info["img_scale"]]), size

    def network(self, pixels: Tensor) -> Any:
        """Raw outputs."""
        return self.bench.model(pixels)

    def postprocess(self, outputs: Any, scale: Tensor, size: Tensor) -> Tensor:
        """(100, 6): x, y, x, y, score, class from 1."""
        part = self.bench
        selected = bench._post_process(*outputs, part.num_levels, part.num_classes, part.max_detection_points)
        classes, boxes, indices, labels = selected
        found: Tensor = bench._batch_detection(
            1, classes, boxes, part.anchors.boxes, indices, labels, scale, size, part.max_det_per_image, part.soft_nms
        )
        return found[0]

    @torch.inference_mode()
    def predict(self, path: str, pads_with_zero: bool = False) -> Tensor:
        """File to boxes. `pads_with_zero` pads as this package does: with exactly the mean, not the nearest integer."""
        image = self.decode(path)
        pixels, scale, size = self.preprocess(image)
        if pads_with_zero:
            pixels[:, :, int(image.height / float(scale)) :] = 0
            pixels[:, :, :, int(image.width / float(scale)) :] = 0
        return self.postprocess(self.network(pixels), scale, size)


def predicting(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """From the file to boxes."""
    predictor = Predictor(case)
    found = predictor.predict(case["picture"], pads_with_zero=True)
    rows = [[*row[:5], int(row[5]) - 1] for row in found.tolist() if row[5] > 0]
    parts = Parts()
    for part in ("decode", "preprocess", "network", "postprocess"):
        parts.watch(predictor, part, part)
    return parts.timed(lambda: predictor.predict(case["picture"])), {"detections": rows}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `worker.serve`."""
    measure, facts = (training if case["task"] == "train" else predicting)(case)
    versions = {name: importlib.metadata.version(name) for name in ("effdet", "timm", "torchvision")}
    versions["torch"] = torch.__version__
    return measure, {**facts, "versions": versions, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(make)
