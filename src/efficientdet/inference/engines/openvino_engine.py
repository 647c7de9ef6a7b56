"""The network in OpenVINO, on the CPU."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.cache import cache_folder
from efficientdet.errors import require
from efficientdet.inference.engines.engine import Session

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
    return require("openvino", "export").Core()


def openvino_session(
    model: Any, shape: Sequence[int], precision: str, streams: int = 1, outputs: Sequence[str] = ()
) -> Session:
    """Compile a model of OpenVINO for one shape of input; each thread has a request of its own.

    Args:
        model: as `read_model` gives it; its input takes the shape, lasting.
        shape: (B, 3, H, W), with -1 for what may vary.
        precision: `fp32` or `bf16`.
        streams: so many threads may call at once, and share the cores.
        outputs: their names, in order; none for all, in the model's order.
    """
    model.reshape(list(shape))
    if precision == "bf16":
        model = _with_bf16_logits(model)
    # Its own choice would be bf16 wherever the processor has it.
    settings = {
        "CACHE_DIR": str(cache_folder("engines", "openvino")),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino_core().compile_model(model, "CPU", settings)
    own = threading.local()

    def run(images: NDArray[np.float32]) -> list[Tensor]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer({0: images}, share_inputs=True, share_outputs=True)
        tensors = [own.request.get_tensor(name) for name in outputs] if outputs else own.request.output_tensors
        return [_as_torch(tensor) for tensor in tensors]

    return run


def _with_bf16_logits(model: Any) -> Any:
    """Leave class logits, by far the largest output, in the numbers that they were computed in: half the memory."""
    openvino = require("openvino", "export")
    steps = openvino.preprocess.PrePostProcessor(model)
    for number, output in enumerate(model.outputs):
        if output.any_name.startswith("class_logits"):
            steps.output(number).tensor().set_element_type(openvino.Type.bf16)
    return steps.build()


def _as_torch(tensor: Any) -> Tensor:
    if tensor.element_type.to_string() == "bf16":  # which numpy does not know: the bits come as something else
        return torch.from_numpy(tensor.data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tensor.data)
