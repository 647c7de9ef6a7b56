"""OpenVINO files (an .xml and a .bin beside it): writing, and running on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efficientdet.errors import require
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.metadata import KEY, file_facts, read_facts
from efficientdet.exporting.onnx_file import write_onnx
from efficientdet.exporting.settings import ExportSettings
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.onnx_graph import OUTPUTS
from efficientdet.inference.engines.openvino_engine import openvino_core


def write_openvino(detector: Detector, path: Path, settings: ExportSettings) -> None:
    """Write a detector as an OpenVINO model, by way of ONNX; the metadata go into its rt_info.

    Raises:
        MissingExtraError: openvino, onnx or onnxscript is not installed.
    """
    openvino = require("openvino", "export")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        write_onnx(detector, source, settings)
        model = openvino.convert_model(str(source))
        if settings.half:
            halve_weights(model)
        model.set_rt_info(json.dumps(file_facts(detector, settings)), KEY)
        # OpenVINO's own compression would round the anchors too.
        openvino.save_model(model, str(path), compress_to_fp16=False)


def halve_weights(model: Any) -> None:
    """Store convolutions' weights as float16, with a conversion behind each; changes the model."""
    openvino = require("openvino", "export")
    ops = openvino.opset13
    for conv in _convolutions(model):
        port = _weights_port(conv)
        weights = port.get_source_output().get_node()
        half = ops.constant(weights.data.astype(np.float16))
        port.replace_source_output(ops.convert(half, "f32").output(0))


def _convolutions(model: Any) -> list[Any]:
    return [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")]


def _weights_port(conv: Any) -> Any:
    """The input that takes a convolution's constant weights, which reshaping or conversion may stand before."""
    port = conv.input(1)
    while (source := port.get_source_output().get_node()).get_type_name() != "Constant":
        port = source.input(0)
    return port


def _with_bias(conv: Any) -> Any:
    """The output behind a convolution's bias, which is an addition of its own here."""
    for target in conv.output(0).get_target_inputs():
        node = target.get_node()
        if node.get_type_name() == "Add" and node.input_value(1).get_node().get_type_name() == "Constant":
            return node.output(0)
    return conv.output(0)


class OpenvinoFile:
    """An exported OpenVINO file on the CPU, computing in float32.

    Attributes:
        facts: its metadata.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            MissingExtraError: openvino is not installed.
            WeightsError: it holds no metadata of ours.
        """
        self.core = openvino_core()
        self.path = path
        model = self.core.read_model(str(path))
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        self.facts = read_facts(text, path)
        if self.facts["end_to_end"]:
            model.add_outputs(list(OUTPUTS))
        self.compiled = self._compile(model)

    def raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, A, K) class logits and (B, A, 4) box deltas, also of an end-to-end file."""
        class_logits, box_deltas = self._run(batch, list(OUTPUTS))
        return class_logits, box_deltas

    def detect(self, batch: Batch) -> list[Tensor]:
        """boxes_xyxy, scores, labels and counts of an end-to-end file."""
        return self._run(batch, ["boxes_xyxy", "scores", "labels", "counts"])

    def convolutions(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Layer's name and output of each convolution, in the order in which they run."""
        model = self.core.read_model(str(self.path))
        convs = _convolutions(model)
        first = len(model.outputs)
        model.add_outputs([_with_bias(conv) for conv in convs])
        found = self._compile(model)(self._feed(batch))
        for number, conv in enumerate(convs):
            name = conv.get_friendly_name().removesuffix("/WithoutBiases").partition("@")[0]
            yield name, torch.from_numpy(found[first + number].copy())

    def _compile(self, model: Any) -> Any:
        # Left alone, OpenVINO computes in bfloat16 where the chip has it.
        return self.core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def _feed(self, batch: Batch) -> dict[str, Any]:
        if not self.facts["end_to_end"]:
            return {"images": batch.images.numpy()}
        return {"images": batch.canvases.numpy(), "image_sizes": batch.image_sizes.numpy()}

    def _run(self, batch: Batch, outputs: list[str]) -> list[Tensor]:
        found = self.compiled(self._feed(batch))
        return [torch.from_numpy(found[name].copy()) for name in outputs]
