"""What the module of every format gives: `write(detector, path, metadata)` and `open_file(path)`."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from efficientdet.errors import WeightsError
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.settings import FORMATS
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.network.efficientdet import EfficientDet

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


def first_difference(file: OpenedFile, model: EfficientDet, batch: Batch, tolerance: float) -> str | None:
    """Name the first convolution whose output differs, in the order in which the file runs them.

    Args:
        file: the file.
        model: the network that it was made from.
        batch: images on which their outputs differ.
        tolerance: a layer differs where max |difference| > tolerance * max(1, max |output|).

    Returns:
        The layer by its name in the network, with its level where it runs on each; None where no convolution tells.
    """
    folded = fold(model).cpu().float()
    names: dict[nn.Module, str] = {
        module: name for name, module in folded.named_modules() if isinstance(module, nn.Conv2d)
    }
    expected = _outputs(folded, names, batch.images)
    calls: dict[str, int] = defaultdict(int)
    for name, values in file.convolutions(batch):
        call, wanted = calls[name], expected[name]
        calls[name] += 1
        if call < len(wanted) and _differs(values, wanted[call], tolerance):
            low, high = model.spec.levels
            return f"{name} (on P{low + call})" if len(wanted) == high - low + 1 else name
    return None


def _differs(values: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two outputs differ by more than the tolerance, are of different shapes, or not finite."""
    if values.shape != wanted.shape:
        return True
    return not float((values - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def _outputs(model: nn.Module, names: Mapping[nn.Module, str], images: Tensor) -> dict[str, list[Tensor]]:
    """What each convolution gives in each of its calls."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        if module in names:
            outputs[names[module]].append(output.clone())  # a copy: the activation behind works in place

    with torch.no_grad(), register_module_forward_hook(keep):
        model(images)
    return outputs
