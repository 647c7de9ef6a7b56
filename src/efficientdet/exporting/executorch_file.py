"""ExecuTorch files (.pte) for phones and small devices, lowered to XNNPACK: writing, and opening in its runtime.

Raw outputs only: the runtime has no loop for NMS. The metadata are what the method `efficientdet` returns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.errors import WeightsError, as_error, require
from efficientdet.exporting.formats import OpenedFile
from efficientdet.exporting.torch_export_file import make_program
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.engines.onnx_graph import quiet
from efficientdet.weights.info import METADATA_KEY


def write(detector: Detector, path: Path, metadata: FileMetadata) -> None:
    """Write a detector as an ExecuTorch program for the XNNPACK backend.

    Raises:
        MissingExtraError: executorch is not installed.
    """
    with quiet("executorch"):
        exir = require("executorch.exir", "executorch")
        xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
        lowered = exir.to_edge_transform_and_lower(
            make_program(detector, metadata, torch.contiguous_format),
            partitioner=[xnnpack.XnnpackPartitioner()],
            constant_methods={METADATA_KEY: metadata.to_json()},
        ).to_executorch()
    path.write_bytes(lowered.buffer)


def open_file(path: Path) -> OpenedFile:
    """Open a file in ExecuTorch's Python runtime.

    Raises:
        MissingExtraError: executorch is not installed.
        WeightsError: it is no such file, is damaged, or holds no metadata of ours.
    """
    with quiet("executorch"):
        runtime = require("executorch.runtime", "executorch")
    with as_error(WeightsError, f"{path}: not an ExecuTorch program, or a damaged one"):
        program = runtime.Runtime.get().load_program(path)
        has_metadata = METADATA_KEY in program.method_names
        text = program.load_method(METADATA_KEY).execute([])[0] if has_metadata else None
        method = program.load_method("forward")

    def run(*arrays: NDArray[Any]) -> list[Tensor]:
        return [output.clone() for output in method.execute(list(map(torch.from_numpy, arrays)))]

    return OpenedFile(FileMetadata.from_json(text, path), run)
