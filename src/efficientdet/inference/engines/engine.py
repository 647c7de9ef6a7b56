"""An engine: a network ready to run. Which one is chosen is in `choose`; each runtime has a file of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Raw outputs, by level: (B, A_l, K) class logits and (B, A_l, 4) box deltas.
Outputs = tuple[list[Tensor], list[Tensor]]
# (B, 3, H, W) float32 images to the outputs: float32, save class logits that were computed in bfloat16 and stay so. Any
# thread may call it, and what it gave holds until that thread's next call.
Session = Callable[[NDArray[np.float32]], list[Tensor]]
# Stands in a shape for any number of images.
ANY_BATCH = -1


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


class Sessions:
    """Sessions by the shape of their input, each opened at the first need: fixed shapes run fastest."""

    def __init__(self, open_session: Callable[[tuple[int, ...]], Session]) -> None:
        self._open = open_session
        self._opened: dict[tuple[int, ...], Session] = {}
        self._lock = threading.Lock()

    def find(self, shape: tuple[int, ...]) -> Session:
        """The session for a shape; any thread may ask."""
        if shape not in self._opened:
            with self._lock:
                if shape not in self._opened:
                    self._opened[shape] = self._open(shape)
        return self._opened[shape]


class BySize:
    """Runs a network through a session for each shape of input, opened at the first call.

    Single images, the common case, get a session of their own, since fixed shapes are faster.
    """

    def __init__(self, open_session: Callable[[tuple[int, ...]], Session]) -> None:
        self.sessions = Sessions(open_session)

    def __call__(self, images: Tensor) -> Outputs:
        """Raw outputs by level; class logits first, as the graph gives them."""
        session = self.sessions.find((1 if len(images) == 1 else ANY_BATCH, *images.shape[1:]))
        outputs = session(images.contiguous().cpu().numpy())
        half = len(outputs) // 2
        return outputs[:half], outputs[half:]
