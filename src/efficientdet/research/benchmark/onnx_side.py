"""Any ONNX file beside this package's network: python -m efficientdet.research.benchmark.onnx_side."""

from __future__ import annotations

from typing import Any

from efficientdet.errors import SettingError, require
from efficientdet.inference.detector import load
from efficientdet.inference.engines.onnxruntime_engine import onnxruntime_options
from efficientdet.research.benchmark.conversation import Measure, Stopwatch, serve
from efficientdet.research.benchmark.steps import input_batch, read_all


def make(case: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
    """Build a case; see `conversation.serve`.

    Args:
        case: `file`; and of ours, whose input the file is given: `model`, `pictures` (of one batch), and as far as they
            are no defaults `image_size` and `threads`.

    Raises:
        SettingError: the file takes something else than (B, 3, height, width) float32 of that size.
    """
    runtime = require("onnxruntime", "export")
    import torch

    if case.get("threads"):
        torch.set_num_threads(case["threads"])
    detector = load(case["model"], device="cpu", image_size=case.get("image_size"))
    pixels = input_batch(detector, read_all(detector, case["pictures"]))[0].numpy()
    try:
        session = runtime.InferenceSession(case["file"], onnxruntime_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has its own kinds, one for each way of being no ONNX file
        raise SettingError(f"{case['file']}: ONNX Runtime cannot open it ({error})") from error
    first, *others = session.get_inputs()
    takes = [one if isinstance(one, int) else None for one in first.shape]
    fits = len(takes) == 4 and all(one in (None, own) for one, own in zip(takes, pixels.shape, strict=True))
    if others or first.type != "tensor(float)" or not fits:
        raise SettingError(
            f"{case['file']}: takes {first.name} {first.shape} {first.type}{' and more' if others else ''}; what is "
            f"compared here takes float32 {list(pixels.shape)}"
        )

    def measure() -> dict[str, float]:
        watch = Stopwatch()
        with watch.part("network"):
            session.run(None, {first.name: pixels})
        return {**watch.milliseconds, "total": watch.milliseconds["network"]}

    measure()
    return measure, {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(make)
