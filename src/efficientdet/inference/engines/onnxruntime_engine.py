"""The network in ONNX Runtime: on the CPU, or in TensorRT on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from efficientdet.cache import cache_folder
from efficientdet.errors import SettingError, require
from efficientdet.inference.engines.engine import ANY_BATCH, Session


def onnxruntime_session(
    path: Path, shape: tuple[int, ...], *, precision: str, streams: int, on_gpu: bool = False
) -> Session:
    """A session of ONNX Runtime, on the CPU or in TensorRT."""
    runtime = require("onnxruntime", "export")
    options = onnxruntime_options(streams)
    for axis, length in zip(("batch", "channels", "height", "width"), shape, strict=True):
        if length != ANY_BATCH:
            options.add_free_dimension_override_by_name(axis, length)
    providers: list[Any] = ["CPUExecutionProvider"]
    if on_gpu:
        providers = [_tensorrt_provider(runtime, precision)]
    session = runtime.InferenceSession(str(path), options, providers=providers)
    return lambda images: [torch.from_numpy(part) for part in session.run(None, {"images": images})]


def _tensorrt_provider(runtime: Any, precision: str) -> tuple[str, dict[str, Any]]:
    if "TensorrtExecutionProvider" not in runtime.get_available_providers():
        raise SettingError(
            "backend tensorrt: this build of ONNX Runtime has no TensorRT; run: pip install onnxruntime-gpu tensorrt"
        )
    folder = cache_folder("engines", "tensorrt")
    choices = {"trt_fp16_enable": precision == "fp16", "trt_engine_cache_enable": True}
    return "TensorrtExecutionProvider", {**choices, "trt_engine_cache_path": str(folder)}


def onnxruntime_options(streams: int = 1) -> Any:
    """Options of a silent session, one of so many that share the cores."""
    options = require("onnxruntime", "export").SessionOptions()
    options.intra_op_num_threads = max(1, torch.get_num_threads() // streams)
    options.log_severity_level = 4
    return options
