"""The effdet package's side of a benchmark: runs as a script in effdet's own environment, which lacks this package."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conversation import Measure, Stopwatch, serve  # type: ignore[import-not-found, unused-ignore]
from effdet import bench, get_efficientdet_config  # type: ignore[import-not-found, unused-ignore]
from effdet.data import transforms  # type: ignore[import-not-found, unused-ignore]
from effdet.factory import create_model_from_config  # type: ignore[import-not-found, unused-ignore]
from PIL import Image
from torch import Tensor

Outputs = tuple[list[Tensor], list[Tensor]]


def build(case: dict[str, Any]) -> Any:
    """The network, with the weights that this package's side has too; stochastic depth off, as there."""
    config = get_efficientdet_config(f"tf_efficientdet_{case['model']}")
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


def onnx_network(model: Any, case: dict[str, Any]) -> Callable[[Tensor], Outputs]:
    """The network in ONNX Runtime, as torch's exporter writes it; the file is kept beside the weights."""
    import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]

    path = Path(case["weights"]).with_suffix(f".effdet-{case['batch']}.onnx")
    if not path.exists():
        example = torch.zeros(case["batch"], 3, case["size"], case["size"])
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
    """A request as effdet's validation makes it: its transform, its normalization, its bench in pieces."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.layout = torch.contiguous_format if case.get("runtime") == "onnxruntime" else layout(case)
        self.bench = bench.DetBenchPredict(build(case)).eval()
        mean = [value / 255 for value in case["mean"]]
        self.mean = torch.tensor(case["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(case["std"]).view(1, 3, 1, 1)
        fill = transforms.resolve_fill_color("mean", mean)
        self.resize = transforms.ResizePad(target_size=case["size"], interpolation="bilinear", fill_color=fill)
        self.is_soft = case.get("nms") == "soft"
        is_onnx = case.get("runtime") == "onnxruntime"
        self.network = onnx_network(self.bench.model, case) if is_onnx else self.bench.model

    def decode(self, path: str) -> Any:
        """File to PIL image."""
        return Image.open(path).convert("RGB")

    def preprocess(self, images: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """The network's input, the factors back to original pixels, and the original (width, height) of each."""
        arrays, scales = [], []
        for image in images:
            resized, info = self.resize(image, {})
            pixels, info = transforms.ImageToNumpy()(resized, info)
            arrays.append(pixels)
            scales.append(info["img_scale"])
        batch = torch.from_numpy(np.stack(arrays)).float().sub_(self.mean).div_(self.std)
        sizes = torch.tensor([image.size for image in images], dtype=torch.float32)
        return batch.contiguous(memory_format=self.layout), torch.tensor(scales), sizes

    def postprocess(self, outputs: Outputs, scales: Tensor, sizes: Tensor) -> Tensor:
        """(B, 100, 6): x, y, x, y, score, class from 1."""
        part = self.bench
        selected = bench._post_process(*outputs, part.num_levels, part.num_classes, part.max_detection_points)
        classes, boxes, indices, labels = selected
        found: Tensor = bench._batch_detection(
            len(scales), classes, boxes, part.anchors.boxes, indices, labels, scales, sizes, part.max_det_per_image,
            self.is_soft,
        )  # fmt: skip
        return found

    @torch.inference_mode()
    def raw(self, paths: list[str], pads_with_zero: bool = False) -> tuple[Outputs, Tensor, Tensor]:
        """Files to what post-processing takes.

        `pads_with_zero` pads as this package does: with exactly the mean, not the nearest integer.
        """
        images = [self.decode(path) for path in paths]
        pixels, scales, sizes = self.preprocess(images)
        if pads_with_zero:
            for row, image, scale in zip(pixels, images, scales.tolist(), strict=True):
                row[:, int(image.height / scale) :] = 0
                row[:, :, int(image.width / scale) :] = 0
        return self.network(pixels), scales, sizes

    @torch.inference_mode()
    def predict(self, paths: list[str], pads_with_zero: bool = False) -> Tensor:
        """Files to boxes."""
        return self.postprocess(*self.raw(paths, pads_with_zero))

    @torch.inference_mode()
    def measure(self, paths: list[str]) -> dict[str, float]:
        """Milliseconds of `predict`, whole and by part."""
        whole, watch = Stopwatch(), Stopwatch()
        with whole.part("total"):
            with watch.part("decode"):
                images = [self.decode(path) for path in paths]
            with watch.part("preprocess"):
                pixels, scales, sizes = self.preprocess(images)
            with watch.part("network"):
                outputs = self.network(pixels)
            with watch.part("postprocess"):
                self.postprocess(outputs, scales, sizes)
        return {**whole.milliseconds, **watch.milliseconds}


def postprocessing(predictor: Predictor, paths: list[str]) -> Measure:
    """From raw outputs to boxes."""
    outputs, scales, sizes = predictor.raw(paths, pads_with_zero=True)

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        watch = Stopwatch()
        with watch.part("total"):
            predictor.postprocess(outputs, scales, sizes)
        return dict(watch.milliseconds)

    return measure


def facts(predictor: Predictor, paths: list[str]) -> dict[str, Any]:
    """What it finds in the first picture, and what it is."""
    found = predictor.predict(paths, pads_with_zero=True)[0]
    return {
        "detections": [[*row[:5], int(row[5]) - 1] for row in found.tolist() if row[5] > 0],
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Of what takes part."""
    found = {name: importlib.metadata.version(name) for name in ("effdet", "timm", "torchvision")}
    return {**found, "torch": torch.__version__}


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`.

    Args:
        case: `model`, `weights` (a file of effdet's names), `num_classes`, `size` (side of the input), `mean` and `std`
            (of R, G, B in 0..255), `batch`, `pictures` (of one batch); and as far as they are no defaults `layout`
            (channels_last or NCHW), `runtime` (torch or onnxruntime), `nms` (hard or soft), `measured` (whole or
            postprocess), `threads`.
    """
    if case.get("threads"):
        torch.set_num_threads(case["threads"])
    predictor, paths = Predictor(case), case["pictures"]
    known = facts(predictor, paths)
    if case.get("measured") == "postprocess":
        return postprocessing(predictor, paths), known
    predictor.measure(paths)
    return lambda: predictor.measure(paths), known


if __name__ == "__main__":
    serve(make)
