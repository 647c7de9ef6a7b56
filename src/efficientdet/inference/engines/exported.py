"""Files that `efficientdet export` and `efficientdet quantize` wrote, as engines: raw networks, ONNX or OpenVINO."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.errors import SettingError, WeightsError, require, unknown_name
from efficientdet.inference.engines.engine import Engine, Outputs, Session, Sessions
from efficientdet.inference.engines.onnx_graph import OUTPUTS
from efficientdet.inference.engines.onnxruntime_engine import onnxruntime_options
from efficientdet.inference.engines.openvino_engine import openvino_core, openvino_session
from efficientdet.weights.checkpoint import METADATA_KEY, CheckpointInfo

# What runs a file of each kind; the first unless another is asked for.
RUNNERS = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}


@dataclass(frozen=True)
class ExportedNetwork:
    """A file that was opened.

    Attributes:
        info: what the checkpoint behind it says of itself.
        image_size: (height, width) of its input.
        is_dynamic: whether it takes other sizes too, multiples of the coarsest stride.
        engine: runs it.
    """

    info: CheckpointInfo
    image_size: tuple[int, int]
    is_dynamic: bool
    engine: Engine

    def choose_size(
        self, image_size: int | tuple[int, int] | None, is_rectangular: bool, path: Path
    ) -> tuple[int, int]:
        """The (height, width) that images are letterboxed to.

        Args:
            image_size: what was asked for; None for the file's own.
            is_rectangular: whether images are to be padded to less where that is enough.
            path: of the file, for the message.

        Raises:
            SettingError: the file cannot take that size; says which it can.
        """
        size = self.image_size if image_size is None else image_size
        size = (size, size) if isinstance(size, int) else size
        if not self.is_dynamic and (size != self.image_size or is_rectangular):
            height, width = self.image_size
            raise SettingError(
                f"{path}: takes images of {height}x{width} pixels only; export it with --image-size, or with "
                "--dynamic-size for any multiple of the coarsest stride"
            )
        step = self.info.spec.strides[-1]
        if any(side % step for side in size) and size != self.image_size:
            raise SettingError(f"{path}: image_size is {size}; this file takes multiples of {step} only")
        return size


def is_exported(path: Path) -> bool:
    """Whether a file's name is that of an exported network."""
    return path.suffix in RUNNERS


def open_exported(path: Path, backend: str = "auto", precision: str = "fp32", device: str = "auto") -> ExportedNetwork:
    """Open a raw network that was exported or quantized.

    Args:
        path: an `.onnx` file, or the `.xml` of an OpenVINO one, whose `.bin` lies beside it.
        backend: `onnxruntime` (for `.onnx`) or `openvino`; `auto` for the first that suits.
        precision: `fp32`, or `bf16` in OpenVINO: of what the file does not fix. A file of int8 stays that.
        device: `auto` or `cpu`.

    Returns:
        The network; its engine takes pictures one at a time, since a batch is no faster on a CPU.

    Raises:
        WeightsError: the file is missing, damaged, not one of ours, or end-to-end; says what to load instead.
        SettingError: the file cannot be run so; says how it can.
        MissingExtraError: the library that runs it is not installed.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    backend = _check_choice(path, backend, precision, device)
    opener = _open_onnxruntime if backend == "onnxruntime" else _open_openvino
    text, outputs, run_one = opener(path, precision)
    facts = _facts(text, outputs, path)
    engine = Engine(backend, "int8" if facts["precision"] == "int8" else precision, _one_by_one(run_one))
    height, width = facts["image_size"]
    info = CheckpointInfo.from_json(json.dumps(facts["checkpoint"]), path)
    return ExportedNetwork(info, (int(height), int(width)), bool(facts["dynamic_size"]), engine)


def _check_choice(path: Path, backend: str, precision: str, device: str) -> str:
    runners = RUNNERS[path.suffix]
    if backend not in ("auto", *runners):
        raise unknown_name(f"backend for a {path.suffix} file", backend, ("auto", *runners))
    if str(device) not in ("auto", "cpu"):
        raise SettingError(f"{path}: device is '{device}'; exported files run on the CPU here")
    backend = runners[0] if backend == "auto" else backend
    offered = ("fp32", "bf16") if backend == "openvino" else ("fp32",)
    if precision not in offered:
        raise SettingError(f"{path}: precision is '{precision}'; {backend} runs it in: {', '.join(offered)}")
    return backend


def _facts(text: str | None, outputs: list[str], path: Path) -> dict[str, Any]:
    """The metadata of a file that is a raw network of ours."""
    if not text:
        raise WeightsError(
            f"{path}: says nothing of its classes and network, so this package did not export it; load its checkpoint, "
            "or export that anew: efficientdet export NAME --to onnx"
        )
    try:
        facts: dict[str, Any] = json.loads(text)
        needed = ("end_to_end", "checkpoint", "image_size", "dynamic_size", "precision")
        missing = [name for name in needed if name not in facts]
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: damaged metadata ({error})") from error
    if missing:
        raise WeightsError(f"{path}: damaged metadata (no {', '.join(missing)})")
    if facts["end_to_end"]:
        raise WeightsError(
            f"{path}: goes from bytes to boxes by itself (--end-to-end), for programs without this package; to load a "
            "file here, export it without --end-to-end, or load the checkpoint"
        )
    if sorted(outputs) != sorted(OUTPUTS):
        raise WeightsError(f"{path}: its outputs are {outputs}, not {list(OUTPUTS)}; export it anew")
    return facts


def _one_by_one(run_one: Session) -> Callable[[Tensor], Outputs]:
    def run(images: Tensor) -> Outputs:
        pixels = images.contiguous().cpu().numpy()
        if len(pixels) == 1:
            parts = run_one(pixels)
        else:  # what a session gave holds until its next call
            each = [[output.clone() for output in run_one(image[None])] for image in pixels]
            parts = [torch.cat(outputs) for outputs in zip(*each, strict=True)]
        class_logits, box_deltas = parts
        return [class_logits], [box_deltas]

    return run


def _open_onnxruntime(path: Path, precision: str) -> tuple[str | None, list[str], Session]:
    """Metadata, names of outputs, and how to run the file."""
    runtime = require("onnxruntime", "export")
    try:
        session = runtime.InferenceSession(str(path), onnxruntime_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no other base
        raise WeightsError(f"{path}: not an ONNX file, or a damaged one ({_first_line(error)})") from error
    outputs = [output.name for output in session.get_outputs()]
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def run(image: NDArray[np.float32]) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(list(OUTPUTS), {"images": image})]

    return text, outputs, run


def _open_openvino(path: Path, precision: str) -> tuple[str | None, list[str], Session]:
    """Metadata, names of outputs, and how to run the file."""
    core = openvino_core()
    if path.suffix == ".xml" and not path.read_bytes().rstrip().endswith(b"</net>"):
        # OpenVINO would try all that it knows of, and print what each made of it.
        raise WeightsError(f"{path}: not an OpenVINO file, or a damaged one (it does not end as one)")
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        raise WeightsError(f"{path}: cannot be read ({_last_line(error)}); is its .bin beside it?") from error
    outputs = [output.any_name for output in model.outputs]
    place = [METADATA_KEY] if path.suffix == ".xml" else ["framework", METADATA_KEY]  # an ONNX file's own metadata
    text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
    sessions = Sessions(lambda shape: openvino_session(model.clone(), shape, precision, outputs=OUTPUTS))
    return text, outputs, lambda image: sessions.find(image.shape)(image)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
