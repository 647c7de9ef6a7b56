"""An engine: a network ready to run. `choose` picks one; PyTorch's is here, every other runtime's in its own file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.session import ANY_BATCH, Session
from efficientdet.network.efficientdet import EfficientDet

# Raw outputs by level: (B, A_l, K) class logits and (B, A_l, 4) box deltas.
Outputs = tuple[list[Tensor], list[Tensor]]


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
        run_on_one_core: the same on one core, for as many threads at once as there are cores: more images per second
            than one image after the other on all cores. None where the backend does not offer it.
    """

    backend: str
    precision: str
    run: Callable[[Tensor], Outputs]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    run_on_one_core: Callable[[Tensor], Outputs] | None = None

    def __str__(self) -> str:
        """Such as `onnxruntime fp32 on cpu`."""
        return f"{self.backend} {self.precision} on {self.device}"


def as_tensors(outputs: list[NDArray[Any]]) -> list[Tensor]:
    """What a session gave, as tensors that share its memory."""
    tensors = [torch.from_numpy(output) for output in outputs]
    return [tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor for tensor in tensors]


class SessionByShape:
    """Runs a network through one session for each input shape, opened at its first use: fixed shapes run fastest.

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
        if shape not in self._opened:
            with self._lock:
                if shape not in self._opened:
                    self._opened[shape] = self._open(shape)
        return as_tensors(self._opened[shape](pixels))


def torch_run(model: EfficientDet, backend: str, precision: str, device: torch.device) -> Callable[[Tensor], Outputs]:
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
