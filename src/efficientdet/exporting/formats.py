"""The formats' writers and readers by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.settings import ExportSettings
from efficientdet.inference.detector import Detector


class ExportedFile(Protocol):
    """A file that can be run here."""

    facts: dict[str, Any]

    def raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, A, K) class logits and (B, A, 4) box deltas."""

    def detect(self, batch: Batch) -> list[Tensor]:
        """boxes_xyxy, scores, labels and counts of an end-to-end file."""

    def convolutions(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Layer's name and output of each convolution in order; nothing where the format does not tell."""


def write_file(detector: Detector, path: Path, settings: ExportSettings) -> None:
    """Write a detector in the format that the settings name.

    Raises:
        MissingExtraError: a library that the format needs is not installed; says how to install it.
    """
    if settings.to == "onnx":
        from efficientdet.exporting.onnx_file import write_onnx

        write_onnx(detector, path, settings)
    elif settings.to == "openvino":
        from efficientdet.exporting.openvino_file import write_openvino

        write_openvino(detector, path, settings)
    elif settings.to == "torch-export":
        from efficientdet.exporting.torch_export_file import write_torch_export

        write_torch_export(detector, path, settings)
    elif settings.to == "executorch":
        from efficientdet.exporting.executorch_file import write_executorch

        write_executorch(detector, path, settings)
    else:
        from efficientdet.exporting.tflite_file import write_tflite

        write_tflite(detector, path, settings)


def open_file(path: Path, to: str) -> ExportedFile:
    """Open a file to run it.

    Raises:
        WeightsError: there is no such file, it is damaged, or holds no metadata of ours.
        MissingExtraError: the library that runs it is not installed; says how to install it.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if to == "onnx":
        from efficientdet.exporting.onnx_file import OnnxFile

        return OnnxFile(path)
    if to == "openvino":
        from efficientdet.exporting.openvino_file import OpenvinoFile

        return OpenvinoFile(path)
    if to == "torch-export":
        from efficientdet.exporting.torch_export_file import TorchExportFile

        return TorchExportFile(path)
    if to == "executorch":
        from efficientdet.exporting.executorch_file import ExecutorchFile

        return ExecutorchFile(path)
    from efficientdet.exporting.tflite_file import TfliteFile

    return TfliteFile(path)
