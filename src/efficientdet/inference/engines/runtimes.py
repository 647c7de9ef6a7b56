"""ONNX Runtime and OpenVINO: their own models, and sessions of them on the CPU, or in TensorRT on a GPU."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.cache import cache_folder, sealing
from efficientdet.errors import SettingError, WeightsError, as_error, require
from efficientdet.inference.engines.session import ANY_BATCH, Session
from efficientdet.inference.hardware import thread_count

_core_lock = threading.Lock()


def openvino_core() -> Any:
    """OpenVINO's core, one for the process, for as long as it lives.

    A core gives the thread that loads its CPU plug-in a stack for signals, and frees that stack with itself. Freed in
    another thread, it leaves the first one a stack that is no more, and the next signal there (a child that ends,
    Ctrl-C) ends the process.
    """
    with _core_lock:  # threads that ask at once must not get one each
        return _core()


@functools.cache
def _core() -> Any:
    openvino = require("openvino", "export")
    # Two threads whose first arrays arrive at once would wait for each other forever: one holds the interpreter, the
    # other the lock under which OpenVINO's bindings look for NumPy. So the first array comes here, before any of them.
    openvino.Tensor(np.zeros(1, np.float32))
    return openvino.Core()


def open_openvino(path: Path) -> Any:
    """OpenVINO's own model of an `.xml` file (its `.bin` beside it) or of an `.onnx` file.

    Raises:
        MissingExtraError: openvino is not installed.
        WeightsError: the file is of another kind or damaged, or the `.bin` is missing; names it.
    """
    core = openvino_core()
    if path.suffix == ".xml" and not path.read_bytes().rstrip().endswith(b"</net>"):
        # OpenVINO would try every format that it knows, and print what each made of the file.
        raise WeightsError(f"{path}: not an OpenVINO file, or a damaged one (its end is missing)")
    try:
        return core.read_model(str(path))
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise WeightsError(f"{path}: cannot be read ({reason}); is its .bin beside it?") from error


def openvino_session(
    model: Any,
    shape: Sequence[int] | None,
    precision: str,
    *,
    streams: int = 1,
    outputs: Sequence[str] = (),
    cache: str | None = None,
) -> Session:
    """Compile a model; each thread has a request of its own.

    Args:
        model: OpenVINO's own; changed where shape or precision ask for it.
        shape: (B, 3, H, W) of its input, with -1 for what may vary; None to leave it.
        precision: `fp32` or `bf16`.
        streams: how many threads may call at once, and share the cores.
        outputs: their names, in order; none for all, in the model's order.
        cache: folder of the cache that keeps what was compiled of this model, so that it opens faster the next time;
            None to keep nothing.
    """
    compiled = compile_openvino(model, shape, precision, cache, NUM_STREAMS=streams)
    own = threading.local()

    def run(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer(dict(enumerate(arrays)), share_inputs=True, share_outputs=True)
        tensors = [own.request.get_tensor(name) for name in outputs] if outputs else own.request.output_tensors
        return [_as_array(tensor) for tensor in tensors]

    return run


def compile_openvino(
    model: Any, shape: Sequence[int] | None, precision: str, cache: str | None = None, **properties: Any
) -> Any:
    """OpenVINO's own compiled model; `properties` are OpenVINO's, the rest as in `openvino_session`."""
    if shape is not None:
        model.reshape(list(shape))
    if precision == "bf16":
        model = _with_bf16_logits(model)
    settings = {
        # Left alone, OpenVINO computes in bf16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": thread_count(),
        **properties,
    }
    if cache is None:
        return openvino_core().compile_model(model, "CPU", settings)
    folder = cache_folder("engines", "openvino", cache)
    with sealing(folder, "*.blob"):  # OpenVINO itself would run what is damaged
        return openvino_core().compile_model(model, "CPU", settings | {"CACHE_DIR": str(folder)})


def _with_bf16_logits(model: Any) -> Any:
    """Leave class logits, by far the largest output, in the precision that they were computed in: half the memory."""
    openvino = require("openvino", "export")
    steps = openvino.preprocess.PrePostProcessor(model)
    for number, output in enumerate(model.outputs):
        if output.any_name.startswith("class_logits"):
            steps.output(number).tensor().set_element_type(openvino.Type.bf16)
    return steps.build()


def _as_array(tensor: Any) -> NDArray[Any]:
    data: NDArray[Any] = tensor.data  # of bf16, which numpy has not, it takes the bits for another type's
    return data.view(np.int16) if tensor.element_type.to_string() == "bf16" else data


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
    options = onnxruntime_options(streams, shape)
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


def onnxruntime_options(streams: int = 1, shape: Sequence[int] = ()) -> Any:
    """Options of a silent session that shares the cores with `streams` - 1 others; `shape` as `onnxruntime_session`."""
    options = require("onnxruntime", "export").SessionOptions()
    options.intra_op_num_threads = max(1, thread_count() // streams)
    options.log_severity_level = 4
    for axis, length in zip(("batch", "channels", "height", "width"), shape, strict=False):
        if length != ANY_BATCH:
            options.add_free_dimension_override_by_name(axis, length)
    return options
