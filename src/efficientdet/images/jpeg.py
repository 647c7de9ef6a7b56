"""Faster JPEG decoding: by simplejpeg, where it is installed, to the same pixels as Pillow's; or at a reduced size."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from typing import Any

import numpy as np
from PIL import Image

from efficientdet.images.convert import RgbImage

# Eighths of the size at which libjpeg can decode, cheapest first.
EIGHTHS = (1, 2, 4)


@functools.cache
def _simplejpeg() -> Any:
    return importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None


def decode_jpeg(image: Image.Image) -> RgbImage | None:
    """Decode a JPEG that Pillow has opened and not decoded yet.

    Args:
        image: as `Image.open` gives it.

    Returns:
        (H, W, 3) uint8 RGB, before EXIF orientation; None if this is not a plain RGB JPEG, is to be reduced, is
        damaged, or simplejpeg is not installed: then Pillow decodes it, or says what is wrong.
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
    """Make Pillow decode a JPEG at a half, a quarter or an eighth of its size, if that is still large enough.

    Args:
        image: as `Image.open` gives it; changed in place. Other formats are left as they are.
        needed: smallest (height, width) of the decoded image, before EXIF orientation.
    """
    if image.format != "JPEG":
        return
    for eighths in EIGHTHS:
        height, width = (math.ceil(side * eighths / 8) for side in (image.height, image.width))
        if height >= needed[0] and width >= needed[1]:
            image.draft(None, (width, height))
            return
