"""The paper's augmentation (section 5.1): horizontal flip, and scale jitter with a random crop."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.records import Records
from efficientdet.images.convert import FloatImage, RgbImage
from efficientdet.images.letterbox import Preprocessing, normalize_and_pad, resize

# A box is dropped when fewer pixels than this are left of its width or height.
SMALLEST_SIDE = 1.0


class Augmentation(NamedTuple):
    """How training images are changed; `TrainConfig` has the defaults and checks the ranges.

    Attributes:
        scale_jitter: an image is scaled to fit the input, times a factor drawn uniformly from this range. Below 1 it is
            padded, above 1 cropped.
        flip: probability of a horizontal flip.
    """

    scale_jitter: tuple[float, float]
    flip: float


def count_too_small(records: Records, size: tuple[int, int], settings: Augmentation) -> int:
    """Number of boxes, ignored regions aside, that `augment` drops even at the largest scale."""
    count = 0
    for image in records.images:
        scaled = _scaled(image.image_size, size, settings.scale_jitter[1])
        sides = (image.boxes_xyxy[:, 2:] - image.boxes_xyxy[:, :2])[~image.is_ignored]
        shown = sides * (scaled[1] / image.width, scaled[0] / image.height)
        count += int((shown.min(1) < SMALLEST_SIDE).sum()) if len(shown) else 0
    return count


def _scaled(image_size: tuple[int, int], size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) of an image that is scaled to fit, times a factor."""
    scale = factor * min(size[0] / image_size[0], size[1] / image_size[1])
    return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))


def augment(
    image: RgbImage,
    boxes_xyxy: NDArray[np.float32],
    size: tuple[int, int],
    preprocessing: Preprocessing,
    settings: Augmentation,
    random: np.random.Generator,
) -> tuple[FloatImage, NDArray[np.float32], NDArray[np.bool_]]:
    """Flip, scale, crop and pad an image to the network's input, and move its boxes with it.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) float32, pixels of the image.
        size: (height, width) of the network's input.
        preprocessing: mean, std and the way of resizing.
        settings: ranges and probabilities.
        random: source of chance; the same state gives the same result.

    Returns:
        pixels: (3, height, width) float32, normalized, padded with the mean color at the right and the bottom.
        boxes_xyxy: (M, 4) float32, pixels of the network's input, clipped; M <= N.
        kept: (N,) bool, which of the boxes are left.
    """
    flips = random.random() < settings.flip
    height, width = image.shape[:2]
    scaled = _scaled((height, width), size, random.uniform(*settings.scale_jitter))
    top = int(random.integers(0, max(0, scaled[0] - size[0]) + 1))
    left = int(random.integers(0, max(0, scaled[1] - size[1]) + 1))
    shown = (min(scaled[0], size[0]), min(scaled[1], size[1]))

    # Resize only the part of the image that the crop shows.
    step_y, step_x = height / scaled[0], width / scaled[1]
    source = (left * step_x, top * step_y, (left + shown[1]) * step_x, (top + shown[0]) * step_y)
    source = (source[0], source[1], min(source[2], width), min(source[3], height))
    pixels = resize(image, shown, preprocessing.resize, source)
    pixels = pixels[:, ::-1] if flips else pixels
    canvas = normalize_and_pad(pixels, size, preprocessing)

    moved = boxes_xyxy / np.array([step_x, step_y] * 2) - np.array([left, top] * 2)
    moved = np.clip(moved, 0, np.array([shown[1], shown[0]] * 2))
    if flips:
        moved = np.stack([shown[1] - moved[:, 2], moved[:, 1], shown[1] - moved[:, 0], moved[:, 3]], 1)
    kept = np.minimum(moved[:, 2] - moved[:, 0], moved[:, 3] - moved[:, 1]) >= SMALLEST_SIDE
    return canvas, moved[kept].astype(np.float32), kept
