"""The network in PyTorch: eager, or compiled by inductor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from efficientdet.inference.engines.engine import Outputs
from efficientdet.inference.engines.fold import fold
from efficientdet.network.efficientdet import EfficientDet


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
