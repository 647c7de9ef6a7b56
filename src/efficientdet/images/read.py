"""Any image source -> an RGB array, EXIF orientation applied. numpy and Pillow only."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import math
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from efficientdet.errors import ImageError
from efficientdet.images.convert import RgbImage, from_array, from_tensor, to_rgb
from efficientdet.images.letterbox import letterbox_scale
from efficientdet.text import LONGEST_PATH, printable

if TYPE_CHECKING:
    import torch

# Eighths of the size at which libjpeg can decode, cheapest first.
EIGHTHS = (1, 2, 4)


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any] | torch.Tensor"
)
_Result = TypeVar("_Result")
_EXIF_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_RUNS_A_PROGRAM = ("EPS", "WMF")  # Pillow hands these to Ghostscript or Windows: not for files of strangers


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


def read(source: ImageSource) -> RgbImage:
    """Read an image from a file, bytes, a PIL image, an array or a tensor.

    EXIF orientation is applied, 16-bit grayscale is scaled to 8 bits, transparency is laid over white, and
    of an animation or a document the first frame is taken.

    Args:
        source: a path; an encoded file as bytes or binary file object; a PIL image; a numpy array (H, W),
            (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16 or bool; or a torch tensor
            (1 or 3, H, W), uint8, or floating within 0..1.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous. An array that has this form already is returned itself, not copied.

    Raises:
        ImageError: it cannot be read; names the file and the reason.
    """
    if isinstance(source, np.ndarray):
        return from_array(source)
    if hasattr(source, "permute"):
        return from_tensor(cast("torch.Tensor", source))
    return _with_image(source, _decode)


def read_reduced(source: ImageSource, size: tuple[int, int]) -> tuple[RgbImage, tuple[int, int]]:
    """Read an image for a network's input of (height, width) `size`; decode a large JPEG at a reduced size.

    Returns:
        As `read`, perhaps at a half, a quarter or an eighth of the size, never smaller than `letterbox` needs; and
        the (height, width) of the whole image.

    Raises:
        ImageError: it cannot be read; names the file and the reason.
    """
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        image = read(source)
        return image, image.shape[:2]

    def decode(image: Image.Image) -> tuple[RgbImage, tuple[int, int]]:
        whole = _upright_size(image)
        _, needed = letterbox_scale(whole, size)
        reduce_while_decoding(image, needed if whole == (image.height, image.width) else needed[::-1])
        return _decode(image), whole

    return _with_image(source, decode)


def image_size(source: str | os.PathLike[str] | bytes | IO[bytes]) -> tuple[int, int]:
    """(height, width) of what `read` returns, from the file's header: no pixel is decoded.

    Raises:
        ImageError: the header cannot be read; names the file and the reason.
    """
    return _with_image(source, _upright_size)


def exif_orientation(source: str | os.PathLike[str] | bytes | IO[bytes]) -> int:
    """The EXIF orientation of a file, 1 to 8, which `read` applies; 1 where it has none.

    Raises:
        ImageError: the header cannot be read; names the file and the reason.
    """
    return _with_image(source, _orientation)


def _with_image(source: Any, use: Callable[[Image.Image], _Result]) -> _Result:
    """Open the source, use the image, close what was opened here, turn every failure into an ImageError.

    The error is raised outside of the `except`, with no cause: the frames of a cause hold the image that a decoder has
    filled so far, and whoever keeps the error would keep those pixels.
    """
    name = printable(_name_of(source), LONGEST_PATH)
    try:
        return _use_image(source, name, use)
    except ImageError:
        raise
    except FileNotFoundError:
        problem = "no such file"
    except IsADirectoryError:
        problem = "is a folder, not an image"
    except UnidentifiedImageError:
        problem = _why_unidentified(source)
    # Decoders raise nearly anything on damaged bytes (struct.error, ValueError, MemoryError, warnings that a
    # filter has turned into errors ...): whatever it is, this image is at fault and the others are not.
    except Exception as error:
        problem = f"cannot be read as an image ({error or type(error).__name__})"
    raise ImageError(f"{name}: {problem}")


def _use_image(source: Any, name: str, use: Callable[[Image.Image], _Result]) -> _Result:
    if isinstance(source, Image.Image):
        return use(source)
    with Image.open(_openable(source, name)) as image:
        _refuse_dangerous(image, name)
        return use(image)


def _name_of(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if isinstance(name, str) and name else f"<{type(source).__name__}>"


def _openable(source: Any, name: str) -> str | IO[bytes]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
            raise ImageError(f"{name}: addresses are not opened; download it first and pass the path")
        return os.fsdecode(source)
    if hasattr(source, "read"):
        return cast("IO[bytes]", source)
    raise ImageError(f"{name}: not an image; pass a path, bytes, a binary file, a PIL image, a numpy array or a tensor")


def _refuse_dangerous(image: Image.Image, name: str) -> None:
    """Refuse what Pillow only warns of; by comparing sizes, for warning filters are not thread-safe."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"{name}: {image.width}x{image.height} is over the limit of {limit} pixels: "
            "a decompression bomb? Shrink the image, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    if image.format in _RUNS_A_PROGRAM:
        raise ImageError(f"{name}: {image.format} is not made of pixels; convert it to PNG or JPEG first")


def _why_unidentified(source: Any) -> str:
    head = b""
    if isinstance(source, (bytes, bytearray, memoryview)):
        head = bytes(source[:16])
    elif isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            head = file.read(16)
        if not head:
            return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "HEIF/HEIC has no decoder in Pillow; convert it to JPEG, or install and register pillow-heif"
    if head[4:11] == b"ftypavi" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        kind = "AVIF" if head[4:8] == b"ftyp" else "WebP"
        return f"damaged, or this Pillow lacks the {kind} decoder; upgrade Pillow or convert the image"
    return "not an image, damaged, or of a format whose decoder is missing"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be understood."""
    try:
        try:
            exif = image.getexif()
        except Warning:  # a corrupt entry, where warnings raise: the next call gives what came before it
            exif = image.getexif()
        value = exif.get(_EXIF_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, IndexError, TypeError, struct.error):
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _decode(image: Image.Image) -> RgbImage:
    if _orientation(image) not in _UPRIGHT and (pixels := decode_jpeg(image)) is not None:
        return pixels
    image.load()  # before the orientation: Pillow turns a TIFF upright itself, and finds late EXIF in a PNG
    orientation = _orientation(image)
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    return np.ascontiguousarray(to_rgb(upright))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "PNG" and "exif" not in image.info and not _png_has_late_metadata(image):
        # PngImageFile.getexif decodes all pixels in search of EXIF behind them; there is none.
        orientation = _orientation_of_header(image)
    else:
        orientation = _orientation(image)
    sideways = orientation in _SIDEWAYS and image.format != "TIFF"  # whose size is upright already
    return (image.width, image.height) if sideways else (image.height, image.width)


def _orientation_of_header(image: Image.Image) -> int:
    header = Image.new("1", (1, 1))
    header.info = image.info
    return _orientation(header)


def _png_has_late_metadata(image: Image.Image) -> bool:
    file = getattr(image, "fp", None)
    if file is None:
        return False
    position, late = file.tell(), False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        late = late or kind == b"IDAT"
        if late and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            break
        file.seek(length + 4, os.SEEK_CUR)
    else:
        late = False
    file.seek(position)
    return late
