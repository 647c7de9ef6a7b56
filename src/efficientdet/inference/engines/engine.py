"""An engine: a network ready to run; and which one runs it, by name, or the best one that is installed.

Every engine runs the folded network (see `fold`). What takes long to build is kept in the cache folder, by network,
weights and versions, and built anew when one of them changes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from efficientdet.cache import cached, is_sealed, seal
from efficientdet.errors import SettingError, as_error, require, unknown_name
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.onnx_graph import write_onnx_network
from efficientdet.inference.engines.runtimes import onnxruntime_session, open_openvino, openvino_session
from efficientdet.inference.engines.session import ANY_BATCH, Session
from efficientdet.inference.hardware import FreeCores, on_cores, thread_count
from efficientdet.inference.settings import OFFERED, wanted_backend
from efficientdet.network.efficientdet import EfficientDet

# Input shapes for which a session stays open; images of one camera need two, portrait and landscape.
MOST_SESSIONS = 8
# Channels that a tensor core takes at once, in half precision.
ALIGNED_CHANNELS = 8
# Versions of a function that torch.compile may keep; beyond them it runs them as they are.
MOST_COMPILED = 256
# Raw outputs by level: (B, A_l, K) class logits and (B, A_l, 4) box deltas.
Outputs = tuple[list[Tensor], list[Tensor]]
_Key = TypeVar("_Key")
_Item = TypeVar("_Item")


LIBRARIES = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "tensorrt": ("onnx", "onnxscript", "onnxruntime"),
}


@dataclass(frozen=True)
class Engine:
    """A network ready to run.

    Attributes:
        backend: what runs it, such as `onnxruntime`.
        precision: of the arithmetic: `fp32`, `bf16`, `fp16`, or `int8` (a quantized file). Inputs and outputs are
            float32, but class logits may come in the precision that they were computed in.
        run: (B, 3, H, W) float32 normalized images, on the engine's device, to the raw outputs. Any thread may call it;
            a thread's next call may overwrite the outputs of the last one.
        device: where inputs and outputs lie.
        shared: gives the same for a number of threads at once, each on its share of the cores: more images a second
            than one image after the other on all cores. None where the backend does not offer it.
        key: stands for the network, where what was measured of it is remembered.
    """

    backend: str
    precision: str
    run: Callable[[Tensor], Outputs]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shared: Callable[[int], Callable[[Tensor], Outputs]] | None = None
    key: str = ""

    def __str__(self) -> str:
        """Such as `onnxruntime fp32 on cpu`."""
        return f"{self.backend} {self.precision} on {self.device}"


def as_tensors(outputs: list[NDArray[Any]]) -> list[Tensor]:
    """What a session gave, as tensors that share its memory."""
    tensors = [torch.from_numpy(output) for output in outputs]
    return [tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor for tensor in tensors]


def last_used(items: dict[_Key, _Item], key: _Key, most: int, make: Callable[[], _Item]) -> _Item:
    """The item of a key, made where it is missing; of all items only the `most` stay that were used last."""
    item = items.pop(key) if key in items else make()
    items[key] = item
    if len(items) > most:
        del items[next(iter(items))]
    return item


class SessionByShape:
    """Runs a network through one session for each input shape, opened at its first use: fixed shapes run fastest.

    The `MOST_SESSIONS` shapes that came last keep theirs.

    Args:
        open_session: opens a session for an input shape (B, 3, H, W), where B is 1 or `ANY_BATCH`.
        one_by_one: run the images of a batch one after the other.
    """

    def __init__(self, open_session: Callable[[tuple[int, ...]], Session], one_by_one: bool = False) -> None:
        self.one_by_one = one_by_one
        self._open = open_session
        self._opened: dict[tuple[int, ...], Session] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) images to the raw outputs; the file gives all class logits first, then all box deltas."""
        pixels = images.contiguous().cpu().numpy()
        if self.one_by_one and len(pixels) > 1:
            # Copies, since the next image's outputs may take their place.
            each = [[output.clone() for output in self._run(image[None])] for image in pixels]
            outputs = [torch.cat(parts) for parts in zip(*each, strict=True)]
        else:
            outputs = self._run(pixels)
        half = len(outputs) // 2
        return outputs[:half], outputs[half:]

    def _run(self, pixels: NDArray[Any]) -> list[Tensor]:
        shape = (1 if len(pixels) == 1 else ANY_BATCH, *pixels.shape[1:])
        with self._lock:
            session = last_used(self._opened, shape, MOST_SESSIONS, lambda: self._open(shape))
        return as_tensors(session(pixels))


def torch_run(model: EfficientDet, backend: str, precision: str, device: torch.device) -> Callable[[Tensor], Outputs]:
    """The folded network in torch, in channels_last, with weights of the type that it computes in.

    On a CPU, as it is, it computes on the cores that other processes leave free; compiled, the number is fixed. On a
    GPU small levels of the pyramid, which would leave most of it idle, run beside each other.
    """
    cores: Callable[[], int] = FreeCores() if device.type == "cpu" and backend == "eager" else thread_count
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    network = fold(model).to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Inductor keeps what it built in a cache of its own on disk; on a CPU the weights are constants to it.
    options = {"freezing": True} if device.type == "cpu" else None
    make = functools.partial(torch.compile, dynamic=False, options=options) if backend == "compile" else _as_it_is
    if backend == "compile":  # every detector compiles the same functions, and each head of each level does
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_COMPILED)
    compute = _side_by_side(network, make) if device.type == "cuda" else make(network)

    def run(images: Tensor) -> Outputs:
        with torch.no_grad(), on_cores(cores()):
            class_logits, box_deltas = compute(images.to(kind, memory_format=torch.channels_last))
        return class_logits, [x.float() for x in box_deltas]

    return run


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _side_by_side(network: EfficientDet, make: Callable[..., Callable[..., Any]]) -> Callable[[Tensor], Outputs]:
    """The network with each head of each level on a CUDA stream of its own; `make` compiles its parts, or does not."""
    missing = _pad_stem(network)

    def to_pyramid(images: Tensor) -> list[Tensor]:
        padded = functional.pad(images, (0, 0, 0, 0, 0, missing)) if missing else images
        maps: list[Tensor] = network.feature_network(network.backbone(padded))
        return maps

    pyramid = make(to_pyramid)
    heads = [
        make(functools.partial(head.predict_level, level=level))
        for head in (network.class_head, network.box_head)
        for level in range(network.spec.levels[1] - network.spec.levels[0] + 1)
    ]
    device = next(network.parameters()).device
    streams = [torch.cuda.Stream(device) for _ in heads]  # type: ignore[no-untyped-call]

    def run(images: Tensor) -> Outputs:
        maps = pyramid(images)
        main = torch.cuda.current_stream(device)
        outputs = []
        for head, stream, x in zip(heads, streams, [*maps, *maps], strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                outputs.append(head(x))
            # Outside of a graph, memory must not be given away before the other stream is done with it.
            x.record_stream(stream)
            outputs[-1].record_stream(main)
        for stream in streams:
            main.wait_stream(stream)
        return outputs[: len(maps)], outputs[len(maps) :]

    return run


def _pad_stem(network: EfficientDet) -> int:
    """Give the first convolution channels that the image lacks, with weights of 0; returns how many.

    In half precision cuDNN would add them itself, in a pass of its own over the images.
    """
    stem = next(module for module in network.backbone.modules() if isinstance(module, nn.Conv2d))
    missing = 0 if stem.weight.dtype == torch.float32 else -stem.in_channels % ALIGNED_CHANNELS
    weight = functional.pad(stem.weight, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
    stem.weight, stem.in_channels = nn.Parameter(weight, requires_grad=False), stem.in_channels + missing
    return missing


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

    @functools.cache
    def by_shape(streams: int) -> SessionByShape:
        def open_session(shape: tuple[int, ...]) -> Session:
            path = find_graph(model, (shape[2], shape[3]), key)
            if backend == "openvino":
                return openvino_session(open_openvino(path), shape, precision, streams=streams, cache=path.stem)
            return onnxruntime_session(path, shape, precision=precision, streams=streams, on_gpu=backend == "tensorrt")

        return SessionByShape(open_session)

    return Engine(backend, precision, by_shape(1), device, None if backend == "tensorrt" else by_shape, key)


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


def find_graph(model: EfficientDet, size: tuple[int, int], key: str = "") -> Path:
    """A network's ONNX file for a size, written at the first need; one serves all multiples of the coarsest stride."""
    key = key or _fingerprint(model)
    is_regular = model.spec.has_whole_cells(size)
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
