"""What the module of every format gives: `write(detector, path, metadata)` and `open_file(path)`; and their inputs."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from efficientdet.errors import WeightsError
from efficientdet.exporting.settings import FORMATS
from efficientdet.images.convert import RgbImage
from efficientdet.images.find import find_images, sample_image
from efficientdet.images.letterbox import Preprocessing, letterbox
from efficientdet.images.read import read
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.network.efficientdet import EfficientDet

_Item = TypeVar("_Item")
# More images would tell nothing new of two networks that must agree on each.
MOST_IMAGES = 16
# Arrays for the inputs of a file, and names of the network's convolutions (empty for all), to name and output of each
# such convolution in the order in which they run; nothing where the format does not tell.
Convolutions = Callable[[Sequence[NDArray[Any]], tuple[str, ...]], Iterable[tuple[str, Tensor]]]
# The convolutions that give the raw outputs.
LAST_CONVOLUTIONS = ("class_head.predict.pointwise", "box_head.predict.pointwise")


class Batch(NamedTuple):
    """Images in the forms that files take.

    Attributes:
        images: (B, 3, H, W) float32, normalized; 0 in the padding.
        canvases: (B, H, W, 3) uint8, letterboxed.
        image_sizes: (B, 2) int64, (height, width) of the originals.
        scales: (B,) float32, network pixels per original pixel.
    """

    images: Tensor
    canvases: Tensor
    image_sizes: Tensor
    scales: Tensor


def make_batch(images: Sequence[RgbImage], size: tuple[int, int], preprocessing: Preprocessing) -> Batch:
    """Letterbox images of any sizes to (height, width).

    `images` of the batch are made from the bytes of `canvases`, as an end-to-end file makes them. The two would differ
    where resizing gives fractions of a byte ("official").
    """
    pixels, scales = zip(*(letterbox(image, size, preprocessing) for image in images), strict=True)
    normalized = torch.from_numpy(np.stack(pixels))
    canvases = to_canvases(normalized, preprocessing)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    again = ((canvases.float() - mean) / std).permute(0, 3, 1, 2)
    return Batch(
        torch.where(normalized == 0, 0.0, again).contiguous(),
        canvases,
        torch.tensor([image.shape[:2] for image in images]),
        torch.tensor(scales),
    )


def to_canvases(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) normalized images back to the (B, H, W, 3) bytes that they were made from."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (preprocessing.mean, preprocessing.std))
    return (images * std + mean).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most this many of the items, evenly spread."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def comparison_images(folder: str | Path | None) -> list[RgbImage]:
    """The images that a file and its network are compared on: at most 16 of a folder, evenly spread; or the sample.

    Raises:
        ImageError: the folder has no image, or one cannot be read.
        MissingExtraError: no folder is given and the sample image is not installed.
    """
    found = [sample_image()] if folder is None else find_images([str(folder)]).images
    images = [read(path) for path in spread(found, MOST_IMAGES)]
    if len(images) == 1:  # its mirror image makes a batch of it
        images.append(np.ascontiguousarray(images[0][:, ::-1]))
    return images


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
    """Name the first convolution whose output differs from the network's, in the order in which the file runs them.

    A layer differs where max |difference| > tolerance * max(1, max |output|).

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
