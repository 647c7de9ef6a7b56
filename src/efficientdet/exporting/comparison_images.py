"""Real pictures as the inputs of exported files, raw and end-to-end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.images.convert import RgbImage
from efficientdet.images.find import find_images, sample_image
from efficientdet.images.letterbox import Preprocessing, letterbox, letterbox_scale, normalize, resize
from efficientdet.images.read import read

# More pictures would tell nothing new of two networks that shall agree on each.
MOST_PICTURES = 16


class Batch(NamedTuple):
    """Pictures in the forms that files take.

    Attributes:
        images: (B, 3, H, W) float32, normalized; 0 outside the picture.
        canvases: (B, H, W, 3) uint8, letterboxed; 0 outside the picture.
        image_sizes: (B, 2) int64, (height, width) of the originals.
        scales: (B,) float32, network pixels per original pixel.
    """

    images: Tensor
    canvases: Tensor
    image_sizes: Tensor
    scales: Tensor


def make_batch(pictures: Sequence[RgbImage], size: tuple[int, int], preprocessing: Preprocessing, whole: bool) -> Batch:
    """Letterbox pictures.

    Args:
        pictures: (H, W, 3) uint8 RGB each, of any sizes.
        size: (height, width) of the network's input.
        preprocessing: mean, std and the way of resizing.
        whole: make `images` from the bytes of `canvases`, as an end-to-end file does. The two differ only where
            resizing gives fractions of a byte ("official").

    Returns:
        The batch.
    """
    images, canvases, scales = [], [], []
    for picture in pictures:
        scale, (height, width) = letterbox_scale(picture.shape[:2], size, preprocessing.resize)
        canvas = np.zeros((*size, 3), np.uint8)
        small = np.rint(resize(picture, (height, width), preprocessing.resize)).astype(np.uint8)
        canvas[:height, :width] = small
        if whole:
            image = np.zeros((3, *size), np.float32)
            image[:, :height, :width] = normalize(small, preprocessing).transpose(2, 0, 1)
        else:
            image, scale = letterbox(picture, size, preprocessing)
        images.append(image)
        canvases.append(canvas)
        scales.append(scale)
    return Batch(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(canvases)),
        torch.tensor([picture.shape[:2] for picture in pictures]),
        torch.tensor(scales),
    )


def comparison_pictures(folder: str | Path | None) -> list[RgbImage]:
    """The pictures that two networks are compared on: of a folder (at most 16, evenly spread), or the sample one.

    Raises:
        ImageError: the folder has no picture, or one cannot be read.
        MissingExtraError: no folder is given and the sample picture is not installed.
    """
    found = [sample_image()] if folder is None else find_images([str(folder)]).images
    step = -(-len(found) // MOST_PICTURES)
    pictures = [read(path) for path in found[::step]]
    if len(pictures) == 1:  # its mirror image makes a batch of it
        pictures.append(np.ascontiguousarray(pictures[0][:, ::-1]))
    return pictures


def groups(pictures: Sequence[RgbImage], size: int) -> Iterable[Sequence[RgbImage]]:
    """The pictures, so many at a time."""
    return (pictures[start : start + size] for start in range(0, len(pictures), size))
