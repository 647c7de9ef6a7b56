"""The effdet package's side of a benchmark: runs in effdet's own environment, which lacks this package."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conversation import Measure, Stopwatch, only, serve, timed_total, training_batch
from effdet import DetBenchTrain, bench, get_efficientdet_config
from effdet.data import transforms
from effdet.factory import create_model_from_config
from PIL import Image
from torch import Tensor

Outputs = tuple[list[Tensor], list[Tensor]]


def build(case: dict[str, Any]) -> Any:
    """The network, with the weights that this package's side has too; stochastic depth off, as there."""
    config = get_efficientdet_config(f"tf_efficientdet_{case['network']}")
    config.backbone_args.drop_path_rate = 0.0
    size = (case["size"], case["size"])
    model = create_model_from_config(
        config, num_classes=case["num_classes"], pretrained=False, pretrained_backbone=False, image_size=size
    )
    model.load_state_dict(torch.load(case["weights"], weights_only=True), strict=True)
    return model.to(memory_format=layout(case))


def layout(case: dict[str, Any]) -> torch.memory_format:
    """How activations and kernels lie in memory."""
    return torch.contiguous_format if case.get("layout") == "NCHW" else torch.channels_last


def training(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Forward, matching and losses, backward, optimizer."""
    model = DetBenchTrain(build(case), create_labeler=True).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=case["learning_rate"], momentum=0.9, weight_decay=4e-5, foreach=True
    )
    pixels, boxes_xyxy, labels = map(torch.from_numpy, training_batch(case["batch"], case["size"]))
    pixels = pixels.contiguous(memory_format=layout(case))
    # effdet takes (y, x, y, x), and counts classes from 1.
    target = {"bbox": boxes_xyxy[..., [1, 0, 3, 2]].contiguous(), "cls": labels + 1}

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if case["precision"] == "bf16" else nullcontext():
            loss = model(pixels, target)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return timed_total(step), {"loss": step()}


def onnx_network(model: Any, case: dict[str, Any]) -> Callable[[Tensor], Outputs]:
    """The network in ONNX Runtime, as torch's exporter writes it; the file is kept beside the weights."""
    import onnxruntime

    path = Path(case["weights"]).with_suffix(".effdet.onnx")
    if not path.exists():
        example = torch.zeros(1, 3, case["size"], case["size"])
        # Older exporters trace; they need no library, and give the same graph for a network without branches.
        torch.onnx.export(model.eval().to(memory_format=torch.contiguous_format), (example,), str(path), dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(pixels: Tensor) -> Outputs:
        outputs = [torch.from_numpy(part) for part in session.run(None, {name: pixels.numpy()})]
        half = len(outputs) // 2
        return outputs[:half], outputs[half:]

    return run


class Predictor:
    """A prediction as effdet's validation makes it: its transform, its normalization, its bench in pieces."""

    def __init__(self, case: dict[str, Any]) -> None:
        is_onnx = case.get("runtime") == "onnxruntime"
        self.layout = torch.contiguous_format if is_onnx else layout(case)
        self.bench = bench.DetBenchPredict(build(case)).eval()
        self.mean = torch.tensor(case["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(case["std"]).view(1, 3, 1, 1)
        fill = transforms.resolve_fill_color("mean", [value / 255 for value in case["mean"]])
        self.resize = transforms.ResizePad(target_size=case["size"], interpolation="bilinear", fill_color=fill)
        self.is_soft = case.get("nms") == "soft"
        self.network = onnx_network(self.bench.model, case) if is_onnx else self.bench.model

    def decode(self, path: str) -> Any:
        """File to PIL image."""
        return Image.open(path).convert("RGB")

    def preprocess(self, image: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The network's input, the factor back to original pixels, and the original (width, height)."""
        resized, info = self.resize(image, {})
        pixels, info = transforms.ImageToNumpy()(resized, info)
        batch = torch.from_numpy(pixels[None]).float().sub_(self.mean).div_(self.std)
        size = torch.tensor([image.size], dtype=torch.float32)
        return batch.contiguous(memory_format=self.layout), torch.tensor([info["img_scale"]]), size

    def postprocess(self, outputs: Outputs, scales: Tensor, sizes: Tensor) -> Tensor:
        """(1, 100, 6): x, y, x, y, score, class from 1."""
        part = self.bench
        selected = bench._post_process(*outputs, part.num_levels, part.num_classes, part.max_detection_points)
        classes, boxes, indices, labels = selected
        found: Tensor = bench._batch_detection(
            len(scales), classes, boxes, part.anchors.boxes, indices, labels, scales, sizes, part.max_det_per_image,
            self.is_soft,
        )  # fmt: skip
        return found

    @torch.inference_mode()
    def predict(self, path: str, timed: Callable[[str], Any] | None = None, exact_padding: bool = False) -> Tensor:
        """File to (100, 6): left, top, right, bottom, score, class from 1; 0 marks an empty place.

        Args:
            path: of the image.
            timed: a stopwatch's `part`, entered around each part.
            exact_padding: pad as this package does, with the mean color itself; effdet takes the nearest whole color.
        """
        timed = timed or (lambda part: nullcontext())
        with timed("decode"):
            image = self.decode(path)
        with timed("preprocess"):
            pixels, scales, sizes = self.preprocess(image)
        if exact_padding:
            pixels[:, :, int(image.height / scales[0]) :] = 0
            pixels[:, :, :, int(image.width / scales[0]) :] = 0
        with timed("network"):
            outputs = self.network(pixels)
        with timed("postprocess"):
            return self.postprocess(outputs, scales, sizes)[0]

    def rows(self, paths: list[str], exact_padding: bool) -> list[list[list[float]]]:
        """Of each image the detections: left, top, right, bottom, score, label from 0."""
        found = [self.predict(path, exact_padding=exact_padding).tolist() for path in paths]
        return [[[*row[:5], int(row[5]) - 1] for row in rows if row[5] > 0] for rows in found]


def predicting(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """One image from file to boxes, whole and by part."""
    predictor, image = Predictor(case), case["images"][0]

    def measure() -> dict[str, float]:
        watch = Stopwatch()
        with watch.part("total"):
            predictor.predict(image, watch.part)
        return only(case.get("part", "total"), watch.milliseconds)

    measure()
    np.save(case["input_file"], predictor.preprocess(predictor.decode(image))[0][0].numpy())
    facts = {
        "detections": predictor.rows(case["images"], exact_padding=True),
        "detections_as_shipped": predictor.rows(case["images"], exact_padding=False),
    }
    return measure, facts


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    found = {name: importlib.metadata.version(name) for name in ("effdet", "timm", "torchvision")}
    return {**found, "torch": torch.__version__}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`.

    Args:
        case: `task`, `network` (such as d0), `weights` (a file of effdet's names), `num_classes`, `size` (side of the
            input), `layout` (channels_last or NCHW). For training `batch`, `learning_rate` and `precision`; else `mean`
            and `std` (R, G, B in 0..255), `images` (the first is measured, all are reported), `input_file` (for the
            network's input), `runtime` (torch or onnxruntime), `nms` (hard or soft), `part` (what to measure).
    """
    measure, facts = (training if case["task"] == "train" else predicting)(case)
    return measure, {**facts, "versions": versions(), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(make)
