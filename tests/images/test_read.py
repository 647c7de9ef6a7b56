"""Reading anything that is an image, and the one way from pixels to a network's input."""

from __future__ import annotations

import io
import json
import struct
import warnings
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from efficientdet.errors import ImageError
from efficientdet.images import read as images

SIDES = st.integers(1, 4000)
SIZES = st.tuples(st.integers(1, 1536), st.integers(1, 1536))


def gradient(height: int = 24, width: int = 40) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 255 / max(height - 1, 1), columns * 255 / max(width - 1, 1), (rows + columns) % 256]
    return np.stack(planes, axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(Image.fromarray(gradient()), kind, exif=exif)


# ---- every odd image
def decoder_is_missing(name: str) -> bool:
    needed = {".avif": "avif", ".webp": "webp", ".jp2": "jpg_2000"}.get(Path(name).suffix)
    return needed is not None and not features.check(needed)


def outcome(path: Path) -> str:
    """What reading gives: "ok height width" (as the header says too), or "reject"."""
    try:
        pixels = images.read(path)
    except ImageError as error:
        assert path.name in str(error)
        assert "\n" not in str(error)
        return "reject"
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert images.image_size(path) == pixels.shape[:2]
    return f"ok {pixels.shape[0]} {pixels.shape[1]}"


def test_every_odd_picture_behaves_as_its_manifest_says(shared_data: Path) -> None:
    folder = shared_data / "odd_images"
    manifest = json.loads((folder / "manifest.json").read_text())
    wrong = {}
    for name, entry in manifest.items():
        expected = "reject" if entry["expect"] == "reject" else f"ok {entry['height']} {entry['width']}"
        got = outcome(folder / name)
        if got != expected and not (got == "reject" and decoder_is_missing(name)):
            wrong[name] = (got, expected)
    assert len(manifest) > 30
    assert wrong == {}


# ---- what may be passed
def test_a_picture_is_the_same_by_every_door(tmp_path: Path) -> None:
    pixels = gradient()
    data = encoded(Image.fromarray(pixels), "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        doors = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file]
        read = [images.read(door) for door in doors]
        assert not file.closed
    for got in [*read, images.read(Image.fromarray(pixels)), images.read(pixels)]:
        np.testing.assert_array_equal(got, pixels)


def test_an_unseekable_stream_is_read() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.source = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.source.readinto(buffer)

    pipe = io.BufferedReader(Pipe(encoded(Image.fromarray(gradient()), "PNG")))
    np.testing.assert_array_equal(images.read(pipe), gradient())


def test_the_pil_image_passed_is_left_alone() -> None:
    source = Image.open(io.BytesIO(oriented("JPEG", 6)))
    pixels = images.read(source)
    assert pixels.shape == (40, 24, 3)
    assert (source.size, source.getexif()[274]) == ((40, 24), 6)


@pytest.mark.parametrize("address", ["https://example.com/a.jpg", "s3://bucket/a.png"])
def test_an_address_is_not_opened(address: str) -> None:
    with pytest.raises(ImageError, match="download") as caught:
        images.read(address)
    assert address in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.jpg: no such file"):
        images.read(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        images.read(tmp_path)
    with pytest.raises(ImageError, match="int"):
        images.read(3)  # type: ignore[arg-type]
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png: the file is empty"):
        images.image_size(tmp_path / "empty.png")


def test_a_telephone_picture_without_decoder_says_what_to_do() -> None:
    with pytest.raises(ImageError, match="convert it to JPEG"):
        images.read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


# ---- damaged and dangerous
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_an_error_not_a_gray_picture(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=path.name):
        images.read(path)


def test_an_error_that_is_kept_holds_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Image.Image]] = []

    def opened(*arguments: Any) -> Image.Image:
        image = pillow_open(*arguments)
        made.append(weakref.ref(image))
        return image

    pillow_open = Image.open
    monkeypatch.setattr(Image, "open", opened)
    data = encoded(Image.fromarray(gradient(64, 64)), "PNG")
    with pytest.raises(ImageError, match="truncated") as kept:
        images.read(data[: len(data) // 2])
    assert len(made) == 1 and made[0]() is None, kept


@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM"]))
    content = bytearray(encoded(Image.fromarray(gradient(8, 8)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        with mock.patch.object(Image, "MAX_IMAGE_PIXELS", 10_000):  # damage may ask for millions, honestly
            assert images.read(bytes(content)).shape[2] == 3
    except ImageError as error:
        assert "bytes>" in str(error)


@pytest.mark.parametrize("ratio", [1.5, 3.0], ids=["where Pillow warns", "where Pillow refuses"])
@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("read", [images.read, images.image_size])
def test_a_bomb_is_refused_whatever_the_warning_filters(
    ratio: float, action: Any, read: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("L", (100, 100)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10000 / ratio))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(ImageError, match=r"bomb\.png"):
            read(path)


def test_a_bomb_of_zeros_never_reaches_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (16000, 16000)).save(path)  # 32 kB, for 768 MB of RGB
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match=r"large\.png.*bomb"):
            images.read(path)


def test_reading_leaves_warning_filters_alone_and_works_in_threads(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(oriented("JPEG", 6))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(images.read, [path] * 64))
    assert all((pixels == read[0]).all() for pixels in read)
    assert list(warnings.filters) == before


def test_a_name_of_several_lines_stays_on_one_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "a\nerror: b.png"
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\\x0aerror: b\.png") as caught:
        images.read(path)
    assert "\n" not in str(caught.value)


def test_postscript_is_refused_for_it_would_start_a_program() -> None:
    with pytest.raises(ImageError, match="EPS"):
        images.read(encoded(Image.new("RGB", (4, 4)), "EPS"))


# ---- orientation
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_as_pillow_does(kind: str, orientation: int) -> None:
    if not features.check({"WEBP": "webp", "JPEG": "jpg"}.get(kind, "zlib")):
        pytest.skip(f"this Pillow has no {kind}")
    data = oriented(kind, orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(images.read(data), expected)
    assert images.image_size(data) == expected.shape[:2] == ((40, 24) if orientation > 4 else (24, 40))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_orientation_behind_the_pixels_of_a_png_is_found() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(Image.fromarray(gradient()), "PNG")
    data = data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    assert images.read(data).shape == (40, 24, 3)
    assert images.image_size(data) == (40, 24)


def test_the_size_of_a_png_is_known_without_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "damaged.png"
    data = encoded(Image.fromarray(gradient()), "PNG")
    at = data.index(b"IDAT") + 20
    path.write_bytes(data[:at] + b"!!!!" + data[at + 4 :])
    assert images.image_size(path) == (24, 40)
    with pytest.raises(ImageError):
        images.read(path)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_impossible_orientation_is_none(value: int) -> None:
    data = oriented("PNG", value)
    np.testing.assert_array_equal(images.read(data), gradient())


def test_exif_that_is_no_exif_is_none() -> None:
    data = encoded(Image.fromarray(gradient()), "PNG", exif=b"Exif\0\0 this is no TIFF header")
    np.testing.assert_array_equal(images.read(data), gradient())


# ---- JPEG by simplejpeg
needs_simplejpeg = pytest.mark.skipif(find_spec("simplejpeg") is None, reason="simplejpeg is missing (extra fast)")


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), "JPEG", **options)


@needs_simplejpeg
@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(30, 100), st.sampled_from([0, 1, 2]), st.booleans()
)  # fmt: skip
def test_the_same_pixels_as_pillow(width: int, height: int, quality: int, subsampling: int, progressive: bool) -> None:
    data = jpeg(width, height, quality=quality, subsampling=subsampling, progressive=progressive)
    with Image.open(io.BytesIO(data)) as image:
        pixels = images.decode_jpeg(image)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, np.asarray(image))
    np.testing.assert_array_equal(images.read(data), pixels)


def test_pillow_has_the_rest() -> None:
    for data in (jpeg(8, 8, "L"), jpeg(8, 8, "CMYK")):
        with Image.open(io.BytesIO(data)) as image:
            assert images.decode_jpeg(image) is None
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    with Image.open(file) as image:
        assert images.decode_jpeg(image) is None


@needs_simplejpeg
def test_a_damaged_file_is_refused_as_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(64, 64)[:-900]
    with pytest.raises(ImageError) as ours:
        images.read(data)
    monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    with pytest.raises(ImageError) as pillows:
        images.read(data)
    assert str(ours.value) == str(pillows.value)


def test_orientation_still_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = jpeg(20, 10, exif=exif)
    assert images.read(data).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("needed", "expected"),
    [((50, 100), (50, 100)), ((51, 100), (100, 200)), ((201, 1), (400, 800)), ((1, 1), (50, 100))],
)
def test_reduced_no_further_than_needed(needed: tuple[int, int], expected: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(jpeg(800, 400))) as image:
        images.reduce_while_decoding(image, needed)
        assert (image.height, image.width) == expected
