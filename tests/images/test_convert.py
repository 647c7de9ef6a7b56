"""Every Pillow mode, array and tensor becomes the RGB that a person would see."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.errors import ImageError
from efficientdet.images import convert
from efficientdet.images import read as images


def gradient(height: int = 24, width: int = 40) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 255 / max(height - 1, 1), columns * 255 / max(width - 1, 1), (rows + columns) % 256]
    return np.stack(planes, axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


MODES = ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
WHITE = {"1": 1, "L": 255, "CMYK": (0,) * 4}
WHITE |= {"LAB": (255, 128, 128), "HSV": (0, 0, 255), "YCbCr": (255, 128, 128)}


def white(mode: str) -> Image.Image:
    if mode in ("P", "PA"):
        return Image.new("RGBA", (3, 2), "white").convert("P").convert(mode)
    return Image.new(mode, (3, 2), WHITE.get(mode, (255,) * len(Image.new(mode, (1, 1)).getbands())))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = white(mode)
    pixels = images.read(image)
    assert image.mode == mode
    assert pixels.shape == (2, 3, 3)
    assert pixels.min() >= 254


def test_transparency_is_laid_over_white() -> None:
    half = np.zeros((1, 3, 4), np.uint8)
    half[0, :, 3] = [0, 128, 255]
    assert images.read(Image.fromarray(half, "RGBA"))[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    data = encoded(palette, "PNG", transparency=1)
    assert images.read(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    keyed = encoded(Image.fromarray(np.uint8([[[1, 2, 3], [4, 5, 6]]])), "PNG", transparency=(4, 5, 6))
    assert images.read(keyed).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_are_scaled_not_cut_off(mode: str) -> None:
    values = np.array([[0, 128, 257, 4095, 32768, 65535]], np.uint16)
    stored = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    pixels = images.read(Image.frombytes(mode, (6, 1), stored))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 16, 128, 255]
    assert (pixels == pixels[:, :, :1]).all()


def test_sixteen_bits_in_a_file(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(tmp_path / "gray.png")
    assert images.read(tmp_path / "gray.png")[0, :, 1].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.int32([[0, 100, 255]]), [0, 100, 255]),
        (np.int32([[-5, 257, 65535]]), [0, 1, 255]),
        (np.int32([[0, 500_000, 1_000_000]]), [0, 128, 255]),
        (np.float32([[0, 0.5, 1]]), [0, 128, 255]),
        (np.float32([[-1, np.nan, 200]]), [0, 0, 200]),
        (np.float32([[0, np.inf, 65535]]), [0, 0, 255]),
    ],
)
def test_modes_without_a_stated_range_take_the_smallest_usual_one(
    values: np.ndarray[Any, Any], expected: list[int]
) -> None:
    assert images.read(Image.fromarray(values))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", [*MODES, "RGB", "I;16", "I", "F"])
def test_a_few_rows_at_a_time_give_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (23, 17, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((noise[:, :, 0].astype(np.float64) * 200).astype(kind))
    elif mode in ("LAB", "HSV", "YCbCr", "CMYK"):
        image = Image.frombytes(mode, (17, 23), noise[:, :, : len(Image.new(mode, (1, 1)).getbands())].tobytes())
    elif mode == "PA":
        image = image.convert("P").convert(mode)
    else:
        image = image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)
    assert image.mode == mode
    whole = images.read(image)
    monkeypatch.setattr(convert, "PIXELS_AT_ONCE", 17 * 5)
    np.testing.assert_array_equal(images.read(image), whole)


def test_transparency_takes_little_more_memory_than_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "PIXELS_AT_ONCE", 1 << 14, raising=False)
    image = Image.new("RGBA", (1500, 1500))
    tracemalloc.start()
    pixels = images.read(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * pixels.nbytes


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert images.read(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3), 65535, np.uint16), [255, 255, 255]),
        (np.full((2, 3, 3), 257 * 9, np.uint16), [9, 9, 9]),
        (np.ones((2, 3), np.bool_), [255, 255, 255]),
        (np.tile(np.uint8([1, 2, 3, 255]), (2, 3, 1)), [1, 2, 3]),
        (np.tile(np.uint8([1, 2, 3, 0]), (2, 3, 1)), [255, 255, 255]),
    ],
)
def test_arrays(array: np.ndarray[Any, Any], value: list[int]) -> None:
    got = images.read(array)
    assert got.shape == (2, 3, 3)
    assert got.dtype == np.uint8
    assert got[1, 2].tolist() == value


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"\(3, 20, 30\)"),
        (np.zeros((0, 20, 3), np.uint8), "empty"),
        (np.zeros((20, 30, 3), np.float32), "float32"),
        (np.zeros((1, 20, 30, 3), np.uint8), r"\(1, 20, 30, 3\)"),
    ],
)
def test_arrays_that_are_no_picture(array: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        images.read(array)


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(gradient()).permute(2, 0, 1)
    np.testing.assert_array_equal(images.read(tensor), gradient())
    np.testing.assert_array_equal(images.read(tensor.float() / 255), gradient())
    np.testing.assert_array_equal(images.read(tensor[:1])[:, :, 2], gradient()[:, :, 0])
    with pytest.raises(ImageError, match=r"0\.\.1"):
        images.read(tensor.float())
    with pytest.raises(ImageError, match=r"\(2, 3, 24, 40\)"):
        images.read(torch.stack([tensor, tensor]))
