"""Pillow images of every mode, arrays and tensors -> RGB uint8. Start at `images.read`, which calls this."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from efficientdet.errors import ImageError
from efficientdet.text import printable

if TYPE_CHECKING:
    import torch

RgbImage: TypeAlias = NDArray[np.uint8]
FloatImage: TypeAlias = NDArray[np.float32]
PIXELS_AT_ONCE = 1 << 21


def to_rgb(image: Image.Image) -> RgbImage:
    """Any Pillow mode to RGB: 16 bits scaled to 8, transparency laid over white.

    Args:
        image: loaded PIL image of any mode.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: it has no pixels.
    """
    if image.width == 0 or image.height == 0:
        name = printable(getattr(image, "filename", "") or "<image>")
        raise ImageError(f"{name}: has no pixels ({image.width}x{image.height})")
    if image.mode == "RGB" and not image.has_transparency_data:
        return np.asarray(image)
    # A few rows at a time: the steps in between take several times the memory of the result.
    rows = max(1, PIXELS_AT_ONCE // image.width)
    strips = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    white = _white(image.crop(strip) for strip in strips) if image.mode in ("I", "F") else 0.0
    result: RgbImage = np.empty((image.height, image.width, 3), np.uint8)
    for strip in strips:
        result[strip[1] : strip[3]] = _strip_to_rgb(image.crop(strip), white)
    return result


def _strip_to_rgb(image: Image.Image, white: float) -> RgbImage:
    """(H, W, 3), or (H, W, 1) of a gray one; `white` is the brightest value of the modes that state none."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        gray = _eight_bits(values, 65535)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray[values == transparent] = 255
        return gray[:, :, None]
    if image.mode in ("I", "F"):
        return _eight_bits(_finite(image) / white, 1.0)[:, :, None]
    if image.mode == "La":  # premultiplied gray, which Pillow converts to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(values: NDArray[Any], white: float) -> RgbImage:
    scaled = np.clip(values.astype(np.float32) * (255.0 / white), 0, 255)
    return np.asarray(np.rint(scaled), dtype=np.uint8)


def _white(strips: Iterable[Image.Image]) -> float:
    """Modes I and F state no range: the smallest usual one that holds the brightest pixel."""
    ranges, brightest = {255.0, 65535.0}, 0.0
    for strip in strips:
        brightest = max(brightest, float(_finite(strip).max()))
        ranges |= {1.0} if strip.mode == "F" else set()
    return min((white for white in ranges if brightest <= white), default=brightest)


def _finite(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _over_white(rgba: NDArray[np.uint8]) -> RgbImage:
    alpha = rgba[:, :, 3:].astype(np.uint16)
    blended = rgba[:, :, :3] * alpha + 255 * (255 - alpha)  # at most 65025: fits
    return np.asarray((blended + 127) // 255, dtype=np.uint8)


def from_array(array: NDArray[Any]) -> RgbImage:
    """An array to RGB.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 (scaled) or bool.

    Returns:
        (H, W, 3) uint8, C-contiguous; the array itself where it is that already.

    Raises:
        ImageError: the shape or the dtype is another; gives it.
    """
    gray = array[:, :, None] if array.ndim == 2 else array
    if gray.ndim != 3 or gray.shape[2] not in (1, 3, 4) or gray.size == 0:
        raise ImageError(f"<array>: shape {array.shape}; must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not empty")
    if array.dtype == np.bool_:
        gray = gray.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        gray = _eight_bits(gray, 65535)
    elif array.dtype != np.uint8:
        raise ImageError(f"<array>: dtype {array.dtype}; must be uint8 (0..255), uint16 or bool")
    if gray.shape[2] == 4:
        gray = _over_white(gray)
    return np.ascontiguousarray(np.repeat(gray, 3, axis=2) if gray.shape[2] == 1 else gray)


def from_tensor(tensor: torch.Tensor) -> RgbImage:
    """A torch tensor to RGB.

    Args:
        tensor: (3, H, W) RGB or (1, H, W) gray; uint8, or floating within 0..1; on any device.

    Returns:
        (H, W, 3) uint8, C-contiguous.

    Raises:
        ImageError: shape, dtype or range is another; gives it.
    """
    shape = tuple(tensor.shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or tensor.numel() == 0:
        raise ImageError(f"<tensor>: shape {shape}; must be (3, H, W) or (1, H, W): one image")
    values = tensor.detach().cpu()
    array = (values.float() if values.is_floating_point() else values).permute(1, 2, 0).numpy()
    if array.dtype == np.float32:
        if not (array.min() >= 0 and array.max() <= 1):
            raise ImageError("<tensor>: floating pixels must lie within 0..1; pass uint8 for 0..255")
        array = _eight_bits(array, 1.0)
    return from_array(array)
