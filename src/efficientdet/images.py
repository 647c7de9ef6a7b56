"""Any input -> an RGB array, EXIF applied; letterbox and normalise: the one pixel path.

Training, evaluation, inference and export all come through here, so that a network never meets a pixel
that was made in another way. numpy and Pillow only.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from efficientdet.errors import ImageError, SettingError
from efficientdet.jpegs import decode_jpeg, reduce_while_decoding
from efficientdet.pixels import FloatImage, RgbImage, from_array, from_tensor, to_rgb

if TYPE_CHECKING:
    import torch

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] "
    "| Image.Image | NDArray[Any] | torch.Tensor"
)
ResizeMethod: TypeAlias = Literal["official", "effdet"]
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


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the numbers that a network was trained on; saved in every checkpoint.

    Attributes:
        mean: of R, G, B in units of 0..255; also the colour of the padding, which is 0 once normalised.
        std: of R, G, B in units of 0..255.
        resize: "effdet" is Pillow's antialiased bilinear, "official" is TensorFlow 2's bilinear without
            antialiasing (half-pixel centres).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: ResizeMethod = "effdet"

    def __post_init__(self) -> None:
        """Check every field; SettingError names the first that is wrong."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise SettingError(f"preprocessing std must be above 0, got {self.std}")
        if self.resize not in get_args(ResizeMethod):
            raise SettingError(f"preprocessing resize must be 'effdet' or 'official', got {self.resize!r}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain types, ready for JSON."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The settings that `to_dict` wrote.

        Raises:
            SettingError: a field is unknown, missing or of the wrong kind; names it.
        """
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown:
            raise SettingError(f"preprocessing has unknown fields {unknown}; known are {sorted(known)}")
        if missing:
            raise SettingError(f"preprocessing lacks the fields {missing}")
        return cls(**values)


def _three_numbers(name: str, value: Any) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise SettingError(f"preprocessing {name} must be three finite numbers (R, G, B), got {value!r}")
    return numbers[0], numbers[1], numbers[2]


IMAGENET = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
LITE = Preprocessing(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


# ---- reading
def read(source: ImageSource) -> RgbImage:
    """Read a picture from anything that holds one.

    EXIF orientation is applied, 16-bit greyscale is scaled to 8 bits, transparency is laid over white, and
    of an animation or a document the first frame is taken.

    Args:
        source: a path; an encoded file as bytes or binary file object; a PIL image; a numpy array (H, W),
            (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16 or bool; or a torch tensor
            (1 or 3, H, W), uint8, or floating within 0..1.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous. An array that is already so is returned itself, not a copy.

    Raises:
        ImageError: it cannot be read; names the file and the reason.
    """
    if isinstance(source, np.ndarray):
        return from_array(source)
    if hasattr(source, "permute"):
        return from_tensor(cast("torch.Tensor", source))
    return _with_image(source, _decode)


def read_reduced(source: ImageSource, size: tuple[int, int]) -> tuple[RgbImage, tuple[int, int]]:
    """Read a picture for a network's input of (height, width) `size`, a large JPEG at a part of its size.

    Returns:
        As `read`, but perhaps at a half, a quarter or an eighth, never below what `letterbox` will make of it; and the
        (height, width) of the whole picture.

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
    """Height and width that `read` would give, from the file's header alone: nothing is decoded.

    Raises:
        ImageError: the header cannot be read; names the file and the reason.
    """
    return _with_image(source, _upright_size)


def _with_image(source: Any, use: Callable[[Image.Image], _Result]) -> _Result:
    """Open the source, use the image, close what was opened here, turn every failure into an ImageError."""
    name = _name_of(source)
    try:
        if isinstance(source, Image.Image):
            return use(source)
        with Image.open(_openable(source, name)) as image:
            _refuse_dangerous(image, name)
            return use(image)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, not a picture") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_why_unidentified(source)}") from error
    # Decoders raise nearly anything on damaged bytes (struct.error, ValueError, MemoryError, warnings that a
    # filter has turned into errors ...): whatever it is, this picture is at fault and the others are not.
    except Exception as error:
        raise ImageError(f"{name}: cannot be read as a picture ({error or type(error).__name__})") from error


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
        return name
    if hasattr(source, "read"):
        return cast("IO[bytes]", source)
    raise ImageError(
        f"{name}: not a picture; pass a path, bytes, a binary file, a PIL image, a numpy array or a tensor"
    )


def _refuse_dangerous(image: Image.Image, name: str) -> None:
    """Refuse what Pillow only warns of; by comparing sizes, for warning filters are not thread-safe."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"{name}: {image.width}x{image.height} is over the limit of {limit} pixels: "
            "a decompression bomb? Shrink the picture, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
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
        return f"damaged, or this Pillow lacks the {kind} decoder; upgrade Pillow or convert the picture"
    return "not a picture, damaged, or of a format whose decoder is missing"


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


# ---- to a network
def letterbox_scale(
    image_size: tuple[int, int], size: tuple[int, int], method: ResizeMethod = "effdet"
) -> tuple[float, tuple[int, int]]:
    """How far a picture is scaled to fit a network's input, and the height and width it then has.

    Args:
        image_size: (height, width) of the picture.
        size: (height, width) of the network's input.
        method: TensorFlow ("official") works in float32, which rounds some sizes otherwise.

    Returns:
        The scale, boxes in network pixels = boxes in the picture * scale; and (new_height, new_width), each
        at least 1 and within `size`.

    Raises:
        ValueError: a side is below 1; gives both sizes.
    """
    if min(*image_size, *size) < 1:
        raise ValueError(f"sizes must be at least 1 pixel: picture {image_size}, network input {size}")
    real = np.float32 if method == "official" else np.float64
    height, width = real(image_size[0]), real(image_size[1])
    scale = min(real(size[0]) / height, real(size[1]) / width)
    new_height, new_width = max(int(height * scale), 1), max(int(width * scale), 1)
    return float(scale), (min(new_height, size[0]), min(new_width, size[1]))


def resize(image: RgbImage, size: tuple[int, int], method: ResizeMethod = "effdet") -> RgbImage | FloatImage:
    """Resize to exactly `size`, bilinear.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) of the result.
        method: "effdet" (as Pillow, to one level: antialiased, gives uint8) or "official" (TensorFlow 2, not
            antialiased, gives float32).

    Returns:
        (height, width, 3) uint8 or float32 in units of 0..255.
    """
    if method == "official":
        return _resize_as_tensorflow(image, size)
    if image.shape[:2] == size:
        return image
    return _resize_antialiased(image, size)


def _resize_antialiased(image: RgbImage, size: tuple[int, int]) -> RgbImage:
    """By Pillow's filter: in torch where that has a faster one for this processor.

    Pillow rounds weights to 22 bits, torch to 15: few pixels differ, by one level.
    """
    import torch  # here, since reading a picture does not need it

    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized)
    pixels = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)
    pixels = torch.nn.functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    return np.asarray(pixels.permute(1, 2, 0).numpy())


def _resize_as_tensorflow(image: NDArray[Any], size: tuple[int, int]) -> FloatImage:
    """As `tf.image.resize(image, size, "bilinear", antialias=False)` of TF 2: half-pixel centres, float32."""
    top, bottom, down = _neighbours(image.shape[0], size[0])
    left, right, across = _neighbours(image.shape[1], size[1])
    across = across[None, :, None]

    def row(index: NDArray[np.intp]) -> FloatImage:
        pixels = image[index]
        first = pixels[:, left].astype(np.float32)
        return np.asarray(first + (pixels[:, right] - first) * across, dtype=np.float32)

    upper = row(top)
    return np.asarray(upper + (row(bottom) - upper) * down[:, None, None], dtype=np.float32)


def _neighbours(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatImage]:
    """Of each new pixel along a side: the old pixels before and after it, and where between them it lies."""
    step = np.float32(old) / np.float32(new)
    place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    floor = np.floor(place)
    before = np.maximum(floor, 0).astype(np.intp)
    after = np.minimum(np.ceil(place), old - 1).astype(np.intp)
    return before, after, np.asarray(place - floor, dtype=np.float32)


def normalise(image: NDArray[Any], preprocessing: Preprocessing) -> FloatImage:
    """(x - mean) / std.

    Args:
        image: (..., 3) uint8 or floating, RGB in units of 0..255.
        preprocessing: gives mean and std.

    Returns:
        (..., 3) float32.
    """
    mean, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)
    return np.asarray((image.astype(np.float32) - mean) / std, dtype=np.float32)


def prepare(
    image: RgbImage, size: tuple[int, int], preprocessing: Preprocessing, image_size: tuple[int, int] | None = None
) -> tuple[FloatImage, float]:
    """Letterbox and normalise: a picture as the network takes it.

    The picture is scaled to fit, keeping its shape, and put at the top left; what remains is padded with 0,
    which is the mean colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: (height, width) of the network's input.
        preprocessing: mean, std and the way of resizing.
        image_size: (height, width) of the whole picture, where `image` was reduced while reading.

    Returns:
        (3, height, width) float32, C-contiguous; and the scale: boxes in network pixels / scale = boxes in
        the picture.

    Raises:
        ValueError: `image` is not (H, W, 3) uint8, or a side of `size` is below 1.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; see images.read")
    scale, (height, width) = letterbox_scale(image_size or image.shape[:2], size, preprocessing.resize)
    resized = resize(image, (height, width), preprocessing.resize)
    canvas = np.zeros((3, *size), dtype=np.float32)
    # As `normalise`, a channel at a time into its place, which saves two copies.
    for channel, mean, std in zip(range(3), preprocessing.mean, preprocessing.std, strict=True):
        place = canvas[channel, :height, :width]
        np.subtract(resized[:, :, channel], np.float32(mean), out=place)
        place /= np.float32(std)
    return canvas, scale
