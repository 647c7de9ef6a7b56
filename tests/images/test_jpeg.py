from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from efficientdet.errors import ImageError
from efficientdet.images import read as images

simplejpeg = pytest.importorskip("simplejpeg")


def encoded(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(30, 100), st.sampled_from([0, 1, 2]), st.booleans()
)  # fmt: skip
def test_the_same_pixels_as_pillow(width: int, height: int, quality: int, subsampling: int, progressive: bool) -> None:
    data = encoded(width, height, quality=quality, subsampling=subsampling, progressive=progressive)
    with Image.open(io.BytesIO(data)) as image:
        pixels = images.decode_jpeg(image)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, np.asarray(image))
    np.testing.assert_array_equal(images.read(data), pixels)


def test_pillow_has_the_rest() -> None:
    for data in (encoded(8, 8, "L"), encoded(8, 8, "CMYK")):
        with Image.open(io.BytesIO(data)) as image:
            assert images.decode_jpeg(image) is None
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    with Image.open(file) as image:
        assert images.decode_jpeg(image) is None


def test_a_damaged_file_is_refused_as_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(64, 64)[:-900]
    with pytest.raises(ImageError) as ours:
        images.read(data)
    monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    with pytest.raises(ImageError) as pillows:
        images.read(data)
    assert str(ours.value) == str(pillows.value)


def test_orientation_still_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(20, 10, exif=exif)
    assert images.read(data).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("needed", "expected"),
    [((50, 100), (50, 100)), ((51, 100), (100, 200)), ((201, 1), (400, 800)), ((1, 1), (50, 100))],
)
def test_reduced_no_further_than_needed(needed: tuple[int, int], expected: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(encoded(800, 400))) as image:
        images.reduce_while_decoding(image, needed)
        assert (image.height, image.width) == expected
