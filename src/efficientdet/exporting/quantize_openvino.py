"""Post-training quantization by NNCF, for OpenVINO."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet.errors import require, unknown_name
from efficientdet.exporting.metadata import KEY
from efficientdet.inference.engines.onnx_graph import write_onnx_network

if TYPE_CHECKING:
    from efficientdet.exporting.quantize import Calibration
    from efficientdet.inference.detector import Detector

PRESETS = ("performance", "mixed")


def write_quantized(
    detector: Detector, calibration: Calibration, path: Path, facts: dict[str, Any], preset: str
) -> None:
    """Quantize, and write the `.xml` with its `.bin`.

    Args:
        detector: the network.
        calibration: pictures that show the ranges.
        path: the file.
        facts: its metadata; `dynamic_size` says whether any size goes.
        preset: of NNCF: `performance` or `mixed`.

    Raises:
        UnknownNameError: no such preset.
        MissingExtraError: nncf, openvino, onnx or onnxscript is not installed.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    with quiet():
        nncf = require("nncf", "export")
    openvino = require("openvino", "export")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        write_onnx_network(
            detector.model, source, detector.image_size, dynamic_batch=True, dynamic_size=facts["dynamic_size"]
        )
        # Converted, not just read: this makes one operation of x * sigmoid(x). In two, each would be quantized by
        # itself and run in float32 in between.
        model = openvino.convert_model(str(source))
    with quiet():
        quantized = nncf.quantize(
            model, nncf.Dataset(calibration), preset=nncf.QuantizationPreset(preset), subset_size=len(calibration)
        )
    gc.collect()  # NNCF's cores must end in the thread that they began in: see `runtimes.openvino_core`
    quantized.set_rt_info(json.dumps(facts), KEY)
    openvino.save_model(quantized, str(path), compress_to_fp16=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep NNCF's progress bars and its account of every layer away from the user."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
