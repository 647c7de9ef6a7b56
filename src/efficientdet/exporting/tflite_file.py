"""LiteRT (TensorFlow Lite) files (.tflite): writing, and opening in its runtime. Raw outputs only.

The metadata are an associated file in TensorFlow Lite's way: the .tflite is a zip archive too.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.errors import WeightsError, as_error, require
from efficientdet.exporting.formats import OpenedFile
from efficientdet.exporting.torch_export_file import METADATA_FILE
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.engines.onnx_graph import FlatNetwork, quiet


def write(detector: Detector, path: Path, metadata: FileMetadata) -> None:
    """Write a detector as a LiteRT model that takes one image.

    Raises:
        MissingExtraError: litert-torch is not installed.
    """
    with quiet("litert_torch"):
        converter = require("litert_torch", "tflite")
        network = FlatNetwork(detector.model).eval()
        network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        converter.convert(network, (torch.zeros(1, 3, *metadata.image_size),)).export(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA_FILE, metadata.to_json())


def open_file(path: Path) -> OpenedFile:
    """Open a file in LiteRT's Python runtime.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
        WeightsError: it is no such file, is damaged, or holds no metadata of ours.
    """
    runtime = require("ai_edge_litert.interpreter", "tflite")
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(METADATA_FILE).decode()
    except (zipfile.BadZipFile, KeyError):
        text = None
    metadata = FileMetadata.from_json(text, path)
    with as_error(WeightsError, f"{path}: not a LiteRT model, or a damaged one"):
        interpreter = runtime.Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    outputs = interpreter.get_signature_runner().get_output_details()

    def run(*arrays: NDArray[Any]) -> list[Tensor]:
        interpreter.set_tensor(image["index"], arrays[0])
        interpreter.invoke()
        return [torch.from_numpy(interpreter.get_tensor(outputs[name]["index"])) for name in sorted(outputs)]

    return OpenedFile(metadata, run)
