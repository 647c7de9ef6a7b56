"""What the module of every format gives: `write(detector, path, metadata)` and `open_file(path)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.settings import FORMATS
from efficientdet.inference.engines.metadata import FileMetadata

# Arrays for the inputs of a file, and names of the network's convolutions (empty for all), to name and output of each
# such convolution in the order in which they run; nothing where the format does not tell.
Convolutions = Callable[[Sequence[NDArray[Any]], tuple[str, ...]], Iterable[tuple[str, Tensor]]]
# The convolutions that give the raw outputs.
LAST_CONVOLUTIONS = ("class_head.predict.pointwise", "box_head.predict.pointwise")


@dataclass(frozen=True)
class OpenedFile:
    """An exported file that runs here.

    Attributes:
        metadata: what it says of itself.
        run: gives its outputs, those of `RAW_OUTPUTS` or `DETECTION_OUTPUTS`.
        run_convolutions: gives what its convolutions give.
    """

    metadata: FileMetadata
    run: Callable[..., list[Tensor]]
    run_convolutions: Convolutions = lambda inputs, names: ()

    def raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, A, K) class logits and (B, A, 4) box deltas; of an end-to-end file those inside its graph."""
        if not self.metadata.end_to_end:
            class_logits, box_deltas = self.run(*self._inputs(batch))
            return class_logits, box_deltas
        levels: dict[str, list[Tensor]] = {name: [] for name in LAST_CONVOLUTIONS}
        for name, values in self.convolutions(batch, LAST_CONVOLUTIONS):
            levels[name].append(values.permute(0, 2, 3, 1).flatten(1, 2))  # (B, h * w, anchors * outputs)
        per_cell = self.metadata.checkpoint.spec.anchors_per_cell
        logits, deltas = (
            torch.cat([level.reshape(len(level), -1, level.shape[2] // per_cell) for level in found], 1)
            for found in levels.values()
        )
        return logits, deltas

    def detect(self, batch: Batch) -> list[Tensor]:
        """boxes_xyxy, scores, labels and counts of an end-to-end file."""
        return self.run(*self._inputs(batch))

    def convolutions(self, batch: Batch, names: tuple[str, ...] = ()) -> Iterable[tuple[str, Tensor]]:
        """Name and output (B, C, h, w) of each convolution, or of those with these names, in the order of the graph."""
        return self.run_convolutions(self._inputs(batch), names)

    def _inputs(self, batch: Batch) -> list[NDArray[Any]]:
        if self.metadata.end_to_end:
            return [batch.canvases.numpy(), batch.image_sizes.numpy()]
        return [batch.images.numpy()]


def open_file(path: Path, to: str) -> OpenedFile:
    """Open a file to run it.

    Raises:
        WeightsError: there is no such file, it is damaged, or has no metadata of ours.
        MissingExtraError: the library that runs it is not installed; says how to install it.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    opened: OpenedFile = module_of(to).open_file(path)
    return opened


def module_of(to: str) -> Any:
    """The module of a format; see this file's first line."""
    return importlib.import_module(f"efficientdet.exporting.{FORMATS[to].module}")


def layer_name(weight: str) -> str:
    """The network's name of the layer whose weight a file calls so: without the modules around the network."""
    return weight.rpartition("model.")[2].removesuffix(".weight")
