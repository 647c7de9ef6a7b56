"""Which engine runs the network: by name, or the best one that is installed.

Every engine runs the folded network (see `fold`). What takes long to build is kept in the cache folder, by network,
weights and versions, and built anew when one of them changes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

import torch

from efficientdet.cache import cached, is_sealed, seal
from efficientdet.errors import SettingError, as_error, require, unknown_name
from efficientdet.inference.engines.engine import Engine, SessionByShape, torch_run
from efficientdet.inference.engines.onnx_graph import write_onnx_network
from efficientdet.inference.engines.onnxruntime_engine import onnxruntime_session
from efficientdet.inference.engines.openvino_engine import open_openvino, openvino_session
from efficientdet.inference.engines.session import Session
from efficientdet.inference.settings import OFFERED, wanted_backend
from efficientdet.network.efficientdet import EfficientDet

LIBRARIES = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "tensorrt": ("onnx", "onnxscript", "onnxruntime"),
}


def open_engine(
    model: EfficientDet, backend: str = "auto", precision: str = "fp32", device: str | torch.device = "cpu"
) -> Engine:
    """Make an engine.

    Args:
        model: the network; not changed.
        backend: one of `OFFERED`; `auto` takes what the variable EFFICIENTDET_BACKEND says, else on a CPU OpenVINO or
            ONNX Runtime, whichever is installed, else torch as it is.
        precision: of the arithmetic, one that the backend offers.
        device: where to run. ONNX Runtime and OpenVINO run on the CPU here, TensorRT on a GPU.

    Raises:
        UnknownNameError: the backend or precision is not known.
        SettingError: the backend cannot do this precision or run on this device; says which can.
        MissingExtraError: the backend's library is not installed.
    """
    device = torch.device(device)
    backend = choose_backend(backend, precision, device)
    if backend in ("eager", "compile"):
        return Engine(backend, precision, torch_run(model, backend, precision, device), device)
    key = _fingerprint(model)

    def by_shape(streams: int) -> SessionByShape:
        def open_session(shape: tuple[int, ...]) -> Session:
            path = _find_graph(model, key, (shape[2], shape[3]))
            if backend == "openvino":
                return openvino_session(open_openvino(path), shape, precision, streams=streams, cache=path.stem)
            return onnxruntime_session(path, shape, precision=precision, streams=streams, on_gpu=backend == "tensorrt")

        return SessionByShape(open_session)

    on_one_core = None if backend == "tensorrt" else by_shape(torch.get_num_threads())
    return Engine(backend, precision, by_shape(1), device, on_one_core)


def choose_backend(backend: str, precision: str, device: torch.device) -> str:
    """The backend that a choice means on a device; see `open_engine`, whose errors it raises."""
    backend = wanted_backend(backend)
    if backend == "auto":
        backend = _fastest(precision, device)
    if backend not in OFFERED:
        raise unknown_name("backend", backend, ("auto", *OFFERED))
    if precision not in OFFERED["eager"]:
        raise unknown_name("precision", precision, OFFERED["eager"])
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


def find_device(device: str) -> torch.device:
    """The device that a setting names; `auto` is a GPU where there is one.

    Raises:
        SettingError: it cannot be used here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with as_error(SettingError, f"device '{device}' cannot be used here"):
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        return chosen


def _fastest(precision: str, device: torch.device) -> str:
    """What `auto` means: on a CPU OpenVINO, then ONNX Runtime, where they are installed; else torch as it is."""
    for backend in ("openvino", "onnxruntime") if device.type == "cpu" else ():
        if precision in OFFERED[backend] and all(importlib.util.find_spec(name) for name in LIBRARIES[backend]):
            return backend
    return "eager"


def _find_graph(model: EfficientDet, key: str, size: tuple[int, int]) -> Path:
    """A network's ONNX file for a size, written at the first need; one serves all multiples of the coarsest stride."""
    is_regular = not any(side % model.spec.strides[-1] for side in size)
    name = f"engines/{key}-{'any' if is_regular else f'{size[0]}x{size[1]}'}.onnx"

    def make(path: Path) -> None:
        write_onnx_network(model, path, size, dynamic_size=is_regular, by_level=True)
        seal(path)

    return cached(name, is_sealed, make)


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
