"""Resize, letterbox and normalize: from an RGB array to the network's input. The one pixel path.

Training, evaluation, inference, calibration and export all come through here, so that a network never meets a pixel
that was made in another way. numpy and Pillow only.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from efficientdet.images.convert import FloatImage, RgbImage
from efficientdet.settings import Settings, setting

ResizeMethod: TypeAlias = Literal["official", "effdet"]


@dataclass(frozen=True)
class Preprocessing(Settings):
    """How pixels become the numbers that a network was trained on; saved in every checkpoint.

    Attributes:
        mean: of R, G, B in units of 0..255; also the color of the padding, which is 0 once normalized.
        std: of R, G, B in units of 0..255.
        resize: "effdet" is Pillow's antialiased bilinear, "official" is TensorFlow 2's bilinear without
            antialiasing (half-pixel centers).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = setting(MISSING, "Standard deviations of R, G, B.", above=0)
    resize: ResizeMethod = "effdet"


IMAGENET = Preprocessing(mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255))
LITE = Preprocessing(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


class Prepared(NamedTuple):
    """An image on its way: what the network takes, and what its detections will say of it."""

    pixels: NDArray[Any]  # float32 of the network's input; (H, W, 3) where it is normalized later
    scale: float
    image: RgbImage
    image_size: tuple[int, int]
    source: str | None

    @property
    def original(self) -> RgbImage | None:
        """The image; None where it was reduced while it was read."""
        return self.image if self.image.shape[:2] == self.image_size else None

    @property
    def nbytes(self) -> int:
        """Memory that the decoded image takes."""
        return self.image.nbytes


def letterbox_scale(
    image_size: tuple[int, int], size: tuple[int, int], method: ResizeMethod = "effdet"
) -> tuple[float, tuple[int, int]]:
    """The factor by which an image is scaled to fit the network's input, and its size then.

    Args:
        image_size: (height, width) of the image.
        size: (height, width) of the network's input.
        method: "official" computes in float32 as TensorFlow does, which rounds some sizes differently.

    Returns:
        The scale (boxes in network pixels = boxes in the image * scale), and (new_height, new_width), each at
        least 1 and at most `size`.

    Raises:
        ValueError: a side is below 1; gives both sizes.
    """
    if min(*image_size, *size) < 1:
        raise ValueError(f"sizes must be at least 1 pixel: image {image_size}, network input {size}")
    real = np.float32 if method == "official" else np.float64
    height, width = real(image_size[0]), real(image_size[1])
    scale = min(real(size[0]) / height, real(size[1]) / width)
    new_height, new_width = max(int(height * scale), 1), max(int(width * scale), 1)
    return float(scale), (min(new_height, size[0]), min(new_width, size[1]))


def resize(
    image: RgbImage,
    size: tuple[int, int],
    method: ResizeMethod = "effdet",
    box: tuple[float, float, float, float] | None = None,
) -> RgbImage | FloatImage:
    """Resize an image, or a part of it, to exactly `size`, bilinear: the same pixels on every processor.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) of the result.
        method: "effdet" (Pillow's bilinear filter, antialiased, gives uint8) or "official" (TensorFlow 2, not
            antialiased, gives float32).
        box: (left, top, right, bottom) of the part, in pixels of the image, fractions allowed; None for all of it.

    Returns:
        (height, width, 3) uint8 or float32 in units of 0..255.
    """
    if method == "official":
        return _resize_as_tensorflow(image, size, box or (0.0, 0.0, image.shape[1], image.shape[0]))
    if box is None and image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, box))


def _resize_as_tensorflow(
    image: NDArray[Any], size: tuple[int, int], box: tuple[float, float, float, float]
) -> FloatImage:
    """As `tf.image.resize(image, size, "bilinear", antialias=False)` of TF 2: half-pixel centers, float32."""
    top, bottom, down = _neighbors(image.shape[0], box[1], box[3], size[0])
    left, right, across = _neighbors(image.shape[1], box[0], box[2], size[1])
    across = across[None, :, None]

    def row(index: NDArray[np.intp]) -> FloatImage:
        pixels = image[index]
        first = pixels[:, left].astype(np.float32)
        return np.asarray(first + (pixels[:, right] - first) * across, dtype=np.float32)

    upper = row(top)
    return np.asarray(upper + (row(bottom) - upper) * down[:, None, None], dtype=np.float32)


def _neighbors(old: int, start: float, end: float, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatImage]:
    """Of each new pixel along a side: the old pixels before and after it, and where between them it lies."""
    step = np.float32(end - start) / np.float32(new)
    place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5) + np.float32(start)
    floor = np.floor(place)
    before = np.maximum(floor, 0).astype(np.intp)
    after = np.minimum(np.ceil(place), old - 1).astype(np.intp)
    return before, after, np.asarray(place - floor, dtype=np.float32)


def normalize_and_pad(image: NDArray[Any], size: tuple[int, int], preprocessing: Preprocessing) -> FloatImage:
    """Normalize an image, (x - mean) / std, and pad it at the bottom and right with 0, which is the mean color.

    Args:
        image: (h, w, 3) uint8 or floating, RGB in units of 0..255, no larger than `size`.
        size: (height, width) of the result.
        preprocessing: gives mean and std.

    Returns:
        (3, height, width) float32, C-contiguous.
    """
    canvas = np.zeros((3, *size), dtype=np.float32)
    # A channel at a time into its place, which saves two copies.
    for channel, mean, std in zip(range(3), preprocessing.mean, preprocessing.std, strict=True):
        place = canvas[channel, : image.shape[0], : image.shape[1]]
        np.subtract(image[:, :, channel], np.float32(mean), out=place)
        place /= np.float32(std)
    return canvas


def letterbox_bytes(
    image: RgbImage, size: tuple[int, int], image_size: tuple[int, int] | None = None, method: ResizeMethod = "effdet"
) -> NDArray[Any]:
    """Letterbox an image for what normalizes it itself, an end-to-end file or a GPU: (height, width, 3).

    Arguments and errors are those of `letterbox`; uint8, or what `resize` gives by another method. The padding is 0,
    to be overwritten after normalizing.
    """
    _check(image)
    _, content = letterbox_scale(image_size or image.shape[:2], size, method)
    resized = resize(image, content, method)
    canvas = np.zeros((*size, 3), resized.dtype)
    canvas[: content[0], : content[1]] = resized
    return canvas


def letterbox(
    image: RgbImage, size: tuple[int, int], preprocessing: Preprocessing, image_size: tuple[int, int] | None = None
) -> tuple[FloatImage, float]:
    """Letterbox and normalize an image: the network's input.

    The image is scaled to fit, keeping its aspect ratio, and put at the top left; the rest is padded with 0, which
    is the mean color.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: (height, width) of the network's input.
        preprocessing: mean, std and the way of resizing.
        image_size: (height, width) of the whole image, where `image` was reduced while reading.

    Returns:
        (3, height, width) float32, C-contiguous; and the scale: boxes in the image = boxes in network pixels / scale.

    Raises:
        ValueError: `image` is not (H, W, 3) uint8, or a side of `size` is below 1.
    """
    _check(image)
    scale, (height, width) = letterbox_scale(image_size or image.shape[:2], size, preprocessing.resize)
    resized = resize(image, (height, width), preprocessing.resize)
    return normalize_and_pad(resized, size, preprocessing), scale


def _check(image: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; see images.read")
