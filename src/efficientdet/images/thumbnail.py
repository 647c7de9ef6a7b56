"""Small images for reports: a part of an image, or all of it, as JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from efficientdet.images.convert import RgbImage

# Longest side in pixels, and the JPEG quality.
LONGEST_SIDE, QUALITY = 420, 78
# A small box is shown with this many times its size around it.
CONTEXT = 5.0
SMALLEST_WINDOW = 64.0

Corners = tuple[float, float, float, float]


def thumbnail(image: RgbImage, boxes_xyxy: Sequence[Sequence[float]] = ()) -> tuple[bytes, Corners]:
    """A small JPEG of an image, or of what is around some boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: xyxy pixels of the image; small ones are shown from near.

    Returns:
        The encoded image, and what it shows: left, top, right, bottom in pixels of the original.
    """
    window = window_around(boxes_xyxy, image.shape[1], image.shape[0])
    return jpeg(small(Image.fromarray(image).crop(window))), window


def jpeg(image: Image.Image) -> bytes:
    """The encoded image."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def small(image: Image.Image) -> Image.Image:
    """The image, reduced to the longest side of a thumbnail."""
    scale = min(1.0, LONGEST_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image


def window_around(boxes: Sequence[Sequence[float]], width: int, height: int) -> Corners:
    """The part of an image to show: all of it, or what is around small boxes; whole pixels."""
    whole = (0.0, 0.0, float(width), float(height))
    inside = [box for box in boxes if box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0]
    if not inside or len(inside) < len(boxes):
        return whole
    left, top = min(box[0] for box in inside), min(box[1] for box in inside)
    right, bottom = max(box[2] for box in inside), max(box[3] for box in inside)
    side = max(CONTEXT * max(right - left, bottom - top), SMALLEST_WINDOW)
    if side >= min(width, height):
        return whole
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    x, y = min(max(x, 0.0), width - side), min(max(y, 0.0), height - side)
    return float(int(x)), float(int(y)), float(int(x + side)), float(int(y + side))
