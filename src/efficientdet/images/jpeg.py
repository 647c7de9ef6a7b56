"""JPEG files decoded faster than Pillow does it: by simplejpeg, where installed, to the same pixels; or reduced."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from typing import Any

import numpy as np
from PIL import Image

from efficientdet.images.convert import RgbImage

# libjpeg can decode at so many eighths of the size, each cheaper than the whole.
EIGHTHS = (1, 2, 4)


@functools.cache
def _simplejpeg() -> Any:
    return importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None


def decode_jpeg(image: Image.Image) -> RgbImage | None:
    """Decode a picture that Pillow has opened and not read yet.

    Args:
        image: as `Image.open` gives it.

    Returns:
        (H, W, 3) uint8 RGB, before EXIF orientation; None where this is not a plain RGB JPEG or shall be reduced, or
        simplejpeg is not installed or finds fault with the file: then Pillow shall say.
    """
    library = _simplejpeg()
    file = getattr(image, "fp", None)
    is_plain = image.format == "JPEG" and image.mode == "RGB"
    is_reduced = bool(getattr(image, "decoderconfig", None))  # by `reduce_while_decoding`
    if library is None or file is None or not is_plain or is_reduced:
        return None
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    try:
        return np.asarray(library.decode_jpeg(data, colorspace="RGB"))
    except ValueError:
        return None


def reduce_while_decoding(image: Image.Image, needed: tuple[int, int]) -> None:
    """Let Pillow decode a JPEG at a half, a quarter or an eighth of its size, if that is still large enough.

    Args:
        image: as `Image.open` gives it; changed in place. Other formats are left as they are.
        needed: (height, width) that the decoded picture, in the file's own orientation, must not fall below.
    """
    if image.format != "JPEG":
        return
    for eighths in EIGHTHS:
        height, width = (math.ceil(side * eighths / 8) for side in (image.height, image.width))
        if height >= needed[0] and width >= needed[1]:
            image.draft(None, (width, height))
            return
