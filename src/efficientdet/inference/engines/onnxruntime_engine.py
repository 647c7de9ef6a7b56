"""ONNX files in ONNX Runtime: on the CPU, or in TensorRT on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from efficientdet.cache import cache_folder
from efficientdet.errors import SettingError, WeightsError, as_error, require
from efficientdet.inference.engines.session import ANY_BATCH, Session
from efficientdet.inference.hardware import thread_count


def onnxruntime_session(
    path: Path, shape: Sequence[int], *, precision: str, streams: int, on_gpu: bool = False
) -> Session:
    """A session for one shape of input.

    Args:
        path: the ONNX file; the axes of its input are called batch, channels, height and width where they vary.
        shape: (B, 3, H, W), with -1 for any B.
        precision: `fp32`, or `fp16` in TensorRT.
        streams: how many threads may call it at once, and share the cores.
        on_gpu: run in TensorRT.
    """
    options = onnxruntime_options(streams)
    for axis, length in zip(("batch", "channels", "height", "width"), shape, strict=True):
        if length != ANY_BATCH:
            options.add_free_dimension_override_by_name(axis, length)
    return as_session(open_onnx(path, options, [_tensorrt_provider(precision)] if on_gpu else None))


def open_onnx(source: Path | bytes, options: Any = None, providers: list[Any] | None = None) -> Any:
    """ONNX Runtime's own session of a file, or of a file's content.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        WeightsError: it is no ONNX file, or a damaged one; names it.
    """
    runtime = require("onnxruntime", "export")
    content, name = (source, "the graph") if isinstance(source, bytes) else (str(source), source)
    with as_error(WeightsError, f"{name}: not an ONNX file, or a damaged one"):
        return runtime.InferenceSession(
            content, options or onnxruntime_options(), providers=providers or ["CPUExecutionProvider"]
        )


def as_session(session: Any, outputs: Sequence[str] = ()) -> Session:
    """Run ONNX Runtime's own session; `outputs` are names, by default all of the file."""
    inputs = [value.name for value in session.get_inputs()]
    names = list(outputs) or None

    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(names, dict(zip(inputs, arrays, strict=True)))
        return outputs

    return run


def _tensorrt_provider(precision: str) -> tuple[str, dict[str, Any]]:
    if "TensorrtExecutionProvider" not in require("onnxruntime", "export").get_available_providers():
        raise SettingError(
            "backend tensorrt: this build of ONNX Runtime has no TensorRT; run: pip install onnxruntime-gpu tensorrt"
        )
    folder = cache_folder("engines", "tensorrt")
    choices = {"trt_fp16_enable": precision == "fp16", "trt_engine_cache_enable": True}
    return "TensorrtExecutionProvider", {**choices, "trt_engine_cache_path": str(folder)}


def onnxruntime_options(streams: int = 1) -> Any:
    """Options of a silent session that shares the cores with `streams` - 1 others."""
    options = require("onnxruntime", "export").SessionOptions()
    options.intra_op_num_threads = max(1, thread_count() // streams)
    options.log_severity_level = 4
    return options
