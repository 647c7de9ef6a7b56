"""What runs the network: torch as it is or compiled, ONNX Runtime, OpenVINO, TensorRT. One call, the same outputs.

Every engine runs the folded network (see `folding`). What takes long to build is kept in the cache folder, by network,
weights and versions, and built anew when one of them changes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientdet.errors import SettingError, require, unknown_name
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.onnx_graph import write_onnx_network
from efficientdet.inference.engines.runtimes import (
    Session,
    Sessions,
    onnxruntime_options,
    openvino_core,
    openvino_session,
)
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.download import cache_dir

BACKENDS = ("eager", "compile", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("fp32", "bf16", "fp16")
# Which precisions each backend can be asked for here; fp16 needs a GPU.
OFFERED = {
    "eager": ("fp32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32",),
    "openvino": ("fp32", "bf16"),
    "tensorrt": ("fp32", "fp16"),
}
LIBRARIES = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "tensorrt": ("onnx", "onnxscript", "onnxruntime"),
}
ANY_BATCH = -1
# Where the environment names a backend, `auto` means that one.
BACKEND_VARIABLE = "EFFICIENTDET_BACKEND"
# Raw outputs, by level: (B, A_l, K) class logits and (B, A_l, 4) box deltas.
Outputs = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Engine:
    """A network ready to run.

    Attributes:
        backend: one of `BACKENDS`.
        precision: what it computes in: one of `PRECISIONS`, or `int8` (a quantized file). Inputs and outputs are
            float32, save class logits, which may be of the type that they were computed in.
        run: (B, 3, H, W) float32 normalized images, on the engine's device, to the raw outputs. Any thread may call it;
            what it gave a thread holds until the thread's next call.
        device: where inputs and outputs lie.
        run_alone: the same on one core, for as many threads at once as there are cores: more pictures a second than
            one picture after the other on all cores. None where the backend does not offer it.
    """

    backend: str
    precision: str
    run: Callable[[Tensor], Outputs]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    run_alone: Callable[[Tensor], Outputs] | None = None

    def __str__(self) -> str:
        """Such as `onnxruntime fp32 on cpu`."""
        return f"{self.backend} {self.precision} on {self.device}"


def open_engine(
    model: EfficientDet, backend: str = "auto", precision: str = "fp32", device: str | torch.device = "cpu"
) -> Engine:
    """Make an engine.

    Args:
        model: the network; not changed.
        backend: one of `BACKENDS`; `auto` takes what the variable EFFICIENTDET_BACKEND says, else on a CPU OpenVINO or
            ONNX Runtime, whichever is installed, else torch as it is.
        precision: one of `PRECISIONS`.
        device: where to run. ONNX Runtime and OpenVINO run on the CPU here, TensorRT on a GPU.

    Raises:
        UnknownNameError: the backend or precision is not known.
        SettingError: the backend cannot do this precision or run on this device; says which can.
        MissingExtraError: the backend's library is not installed.
    """
    device = torch.device(device)
    backend = choose_backend(backend, precision, device)
    if backend in ("eager", "compile"):
        return Engine(backend, precision, _torch_run(model, backend, precision, device), device)
    maker = functools.partial(_openvino if backend == "openvino" else _onnxruntime, precision=precision)
    graphs = _Graphs(model)
    if backend == "tensorrt":
        return Engine(backend, precision, _BySize(graphs, functools.partial(maker, streams=1, on_gpu=True)), device)
    together, alone = (_BySize(graphs, functools.partial(maker, streams=n)) for n in (1, torch.get_num_threads()))
    return Engine(backend, precision, together, device, alone)


def choose_backend(backend: str, precision: str, device: torch.device) -> str:
    """The backend that a choice means on a device; see `open_engine`, whose errors it raises."""
    if backend == "auto":
        backend = os.environ.get(BACKEND_VARIABLE, "auto")
    if backend == "auto":
        backend = _fastest(precision, device)
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, ("auto", *BACKENDS))
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision not in OFFERED[backend]:
        able = [name for name, offered in OFFERED.items() if precision in offered]
        raise SettingError(f"backend {backend} does not offer precision {precision}; these do: {', '.join(able)}")
    if precision == "fp16" and device.type == "cpu":
        raise SettingError("precision fp16 needs a GPU; on a CPU bf16 is the fast one")
    if backend in ("onnxruntime", "openvino") and device.type != "cpu":
        raise SettingError(f"backend {backend} runs on the CPU here; on {device} use eager, compile or tensorrt")
    if backend == "tensorrt" and device.type != "cuda":
        raise SettingError("backend tensorrt needs an NVIDIA GPU; on a CPU use onnxruntime or openvino")
    for library in LIBRARIES.get(backend, ()):
        require(library, "export")
    return backend


def _fastest(precision: str, device: torch.device) -> str:
    """What `auto` means: on a CPU OpenVINO, then ONNX Runtime, where they are installed; else torch as it is."""
    for backend in ("openvino", "onnxruntime") if device.type == "cpu" else ():
        if precision in OFFERED[backend] and all(importlib.util.find_spec(name) for name in LIBRARIES[backend]):
            return backend
    return "eager"


def _torch_run(model: EfficientDet, backend: str, precision: str, device: torch.device) -> Callable[[Tensor], Outputs]:
    """The folded network in torch, in channels_last, with weights of the type that it computes in."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    network = fold(model).to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = _compiled(network, device) if backend == "compile" else network

    def run(images: Tensor) -> Outputs:
        with torch.no_grad():
            class_logits, box_deltas = compiled(images.to(kind, memory_format=torch.channels_last))
        return class_logits, [x.float() for x in box_deltas]

    return run


def _compiled(network: EfficientDet, device: torch.device) -> Callable[[Tensor], Outputs]:
    """Compiled by inductor: on a CPU with the weights as constants, on a GPU as CUDA graphs.

    Inductor keeps what it built in a cache of its own on disk.
    """
    if device.type == "cuda":
        return torch.compile(network, dynamic=False, mode="reduce-overhead")
    return torch.compile(network, dynamic=False, options={"freezing": True})


class _BySize:
    """Runs a network through a session for each shape of input: made at the first call, its graph kept as a file.

    Single images, the common case, get a session of their own, since fixed shapes are faster.
    """

    def __init__(self, graphs: _Graphs, open_session: Callable[[Path, tuple[int, ...]], Session]) -> None:
        self.sessions = Sessions(lambda shape: open_session(graphs.find((shape[2], shape[3])), shape))

    def __call__(self, images: Tensor) -> Outputs:
        session = self.sessions.find((1 if len(images) == 1 else ANY_BATCH, *images.shape[1:]))
        outputs = session(images.contiguous().cpu().numpy())
        half = len(outputs) // 2
        return outputs[:half], outputs[half:]


class _Graphs:
    """A network's ONNX files, written at the first need."""

    def __init__(self, model: EfficientDet) -> None:
        self.model = model
        self.key = _fingerprint(model)

    def find(self, size: tuple[int, int]) -> Path:
        """The ONNX file for a size; one serves all whose sides are multiples of the coarsest stride."""
        coarsest = self.model.spec.strides[-1]
        is_regular = not (size[0] % coarsest or size[1] % coarsest)
        name = "any" if is_regular else f"{size[0]}x{size[1]}"
        path = cache_dir() / "engines" / f"{self.key}-{name}.onnx"
        if not path.is_file():
            write_onnx_network(self.model, path, size, dynamic_size=is_regular, by_level=True)
        return path


def _fingerprint(model: EfficientDet) -> str:
    """Of the network, its weights and the versions that make the graph."""
    digest = hashlib.sha256(repr((model.spec, model.num_classes)).encode())
    for name in ("efficientdet", "torch", "onnx", "onnxscript"):
        with_version = importlib.metadata.version(name) if importlib.util.find_spec(name) else ""
        digest.update(f"{name} {with_version} ".encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _onnxruntime(path: Path, shape: tuple[int, ...], *, precision: str, streams: int, on_gpu: bool = False) -> Session:
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
    folder = cache_dir() / "engines" / "tensorrt"
    folder.mkdir(parents=True, exist_ok=True)
    choices = {"trt_fp16_enable": precision == "fp16", "trt_engine_cache_enable": True}
    return "TensorrtExecutionProvider", {**choices, "trt_engine_cache_path": str(folder)}


def _openvino(path: Path, shape: tuple[int, ...], *, precision: str, streams: int) -> Session:
    return openvino_session(openvino_core().read_model(path), shape, precision, streams)
