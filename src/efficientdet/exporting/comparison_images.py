"""Real images as the inputs of exported files, raw and end-to-end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from efficientdet.images.convert import RgbImage
from efficientdet.images.find import find_images, sample_image
from efficientdet.images.letterbox import Preprocessing, letterbox
from efficientdet.images.read import read

_Item = TypeVar("_Item")
# More images would tell nothing new of two networks that must agree on each.
MOST_IMAGES = 16


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
    """Letterbox images.

    Args:
        images: (H, W, 3) uint8 RGB each, of any sizes.
        size: (height, width) of the network's input.
        preprocessing: mean, std and the way of resizing.

    Returns:
        The batch; `images` are made from the bytes of `canvases`, as an end-to-end file makes them. The two would
        differ where resizing gives fractions of a byte ("official").
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
