"""ExecuTorch files (.pte) for phones and small devices, lowered to XNNPACK: writing, and running here.

Raw outputs only: the runtime has no loop for suppression. The metadata are what the method `efficientdet` returns.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.metadata import KEY, file_facts, read_facts
from efficientdet.exporting.optional_library import require_apart
from efficientdet.exporting.settings import ExportSettings
from efficientdet.exporting.torch_export_file import make_program
from efficientdet.inference.detector import Detector


def _require(module: str) -> Any:
    return require_apart(module, f"executorch (the release that goes with torch {torch.__version__})")


def write_executorch(detector: Detector, path: Path, settings: ExportSettings) -> None:
    """Write a detector as an ExecuTorch program for the XNNPACK backend.

    Raises:
        MissingExtraError: executorch is not installed.
    """
    exir = _require("executorch.exir")
    xnnpack = _require("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    program = make_program(detector, settings, torch.contiguous_format)
    facts = json.dumps(file_facts(detector, settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lowered = exir.to_edge_transform_and_lower(
            program, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods={KEY: facts}
        ).to_executorch()
    path.write_bytes(lowered.buffer)


class ExecutorchFile:
    """An ExecuTorch program in its Python runtime.

    Attributes:
        facts: its metadata.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            MissingExtraError: executorch is not installed.
            WeightsError: it is no such file, or holds no metadata of ours.
        """
        runtime = _require("executorch.runtime")
        try:
            program = runtime.Runtime.get().load_program(path)
        except RuntimeError as error:
            raise WeightsError(f"{path}: not an ExecuTorch program ({error})") from error
        has_facts = KEY in program.method_names
        self.facts = read_facts(program.load_method(KEY).execute([])[0] if has_facts else None, path)
        self.program, self.method = program, program.load_method("forward")

    def raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, A, K) class logits and (B, A, 4) box deltas."""
        class_logits, box_deltas = self.method.execute([batch.images])
        return class_logits.clone(), box_deltas.clone()

    def detect(self, batch: Batch) -> list[Tensor]:
        """Never called: there are no end-to-end files of this format."""
        raise NotImplementedError

    def convolutions(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Nothing: what XNNPACK computes in between does not come out."""
        return iter(())
