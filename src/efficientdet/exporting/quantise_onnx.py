"""Post-training quantisation by ONNX Runtime, for itself."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.errors import require
from efficientdet.exporting.metadata import KEY
from efficientdet.inference.onnx_network import write_onnx_network

if TYPE_CHECKING:
    from efficientdet.exporting.quantise import Calibration
    from efficientdet.inference.detector import Detector


def write_quantised(
    detector: Detector, calibration: Calibration, path: Path, facts: dict[str, Any], preset: str
) -> None:
    """Quantise, and write the `.onnx`: pairs of QuantizeLinear and DequantizeLinear, weights by channel.

    Args:
        detector: the network.
        calibration: pictures that show the ranges: the least and the largest value seen.
        path: the file.
        facts: its metadata; `dynamic_size` says whether any size goes.
        preset: not used.

    Raises:
        MissingExtraError: onnxruntime, onnx or onnxscript is not installed.
    """
    onnx = require("onnx", "export")
    quantization = require("onnxruntime.quantization", "export")
    with tempfile.TemporaryDirectory() as folder:
        source, quantised = Path(folder) / "network.onnx", Path(folder) / "quantised.onnx"
        write_onnx_network(
            detector.model, source, detector.image_size, dynamic_batch=True, dynamic_size=facts["dynamic_size"]
        )
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it warns through the root logger that its own step before was left out
        try:
            quantization.quantize_static(
                source, quantised, _Reader(calibration), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        finally:
            root.setLevel(level)
        graph = onnx.load(str(quantised))
    onnx.helper.set_model_props(graph, {KEY: json.dumps(facts)})
    onnx.save(graph, str(path))


class _Reader:
    """The pictures in the way that ONNX Runtime asks for them."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.next = 0

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """One picture; None behind the last."""
        if self.next == len(self.calibration):
            return None
        self.next += 1
        return {"images": self.calibration[self.next - 1]}
