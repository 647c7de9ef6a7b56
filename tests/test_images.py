"""Reading anything that is a picture, and the one way from pixels to a network's input."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from efficientdet import images
from efficientdet.errors import ImageError, SettingError
from efficientdet.images import IMAGENET, LITE, Preprocessing

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


# ---- every odd picture
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
def test_a_truncated_file_is_an_error_not_a_grey_picture(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=path.name):
        images.read(path)


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


# ---- letterbox
@settings(deadline=None)
@given(image_size=st.tuples(SIDES, SIDES), size=SIZES, method=st.sampled_from(["effdet", "official"]))
def test_the_letterbox_fits_and_fills_one_side(
    image_size: tuple[int, int], size: tuple[int, int], method: Any
) -> None:
    scale, new = images.letterbox_scale(image_size, size, method)
    assert scale == pytest.approx(min(size[0] / image_size[0], size[1] / image_size[1]), rel=1e-6)
    assert all(1 <= new[axis] <= size[axis] for axis in (0, 1))
    assert all(abs(new[axis] - max(image_size[axis] * scale, 1)) <= 1.001 for axis in (0, 1))
    assert max(new[axis] - size[axis] for axis in (0, 1)) >= -1


@pytest.mark.parametrize("sizes", [((0, 5), (8, 8)), ((5, 5), (8, 0))])
def test_a_letterbox_of_nothing_is_refused(sizes: Any) -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        images.letterbox_scale(*sizes)


@settings(deadline=None)
@given(
    image_size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    preprocessing=st.sampled_from([IMAGENET, LITE, Preprocessing(LITE.mean, LITE.std, "official")]),
)
def test_padding_is_the_mean_colour_and_white_stays_white(
    image_size: tuple[int, int], size: tuple[int, int], preprocessing: Preprocessing
) -> None:
    white = np.full((*image_size, 3), 255, np.uint8)
    prepared, _ = images.prepare(white, size, preprocessing)
    _, (height, width) = images.letterbox_scale(image_size, size, preprocessing.resize)
    assert prepared.shape == (3, *size)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    expected = (255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    np.testing.assert_allclose(
        prepared[:, :height, :width], np.broadcast_to(expected[:, None, None], (3, height, width)), rtol=1e-6
    )
    assert not prepared[:, height:].any()
    assert not prepared[:, :, width:].any()


def test_prepare_normalises_the_resized_picture_at_the_top_left() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    prepared, scale = images.prepare(image, (64, 60), IMAGENET)
    assert scale == 0.4
    resized = images.resize(image, (40, 60))
    expected = (resized - np.array(IMAGENET.mean)) / IMAGENET.std
    np.testing.assert_allclose(prepared[:, :40].transpose(1, 2, 0), expected, atol=1e-5)
    np.testing.assert_array_equal(images.normalise(resized, IMAGENET).transpose(2, 0, 1), prepared[:, :40])


@settings(deadline=None)
@given(old=st.tuples(*[st.integers(1, 300)] * 2), new=st.tuples(*[st.integers(1, 90)] * 2), seed=st.integers(0, 9))
@example(old=(1, 1), new=(64, 64), seed=0)
@example(old=(9, 6000), new=(1, 512), seed=0)
@example(old=(1200, 1600), new=(48, 64), seed=0)
def test_resize_is_pillows_to_one_level(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    pillows = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
    difference = np.abs(images.resize(image, new).astype(int) - pillows)
    assert difference.max() <= 1


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_resize_is_the_same_with_and_without_a_fast_kernel(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    flipped, locked = image[:, ::-1], image.copy()
    locked.flags.writeable = False
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = images.resize(image, (30, 50))
    assert found.shape == (30, 50, 3) and found.dtype == np.uint8
    pillows = np.asarray(Image.fromarray(image).resize((50, 30), Image.Resampling.BILINEAR)).astype(int)
    assert (np.abs(found - pillows) > 0).mean() < 0.01
    np.testing.assert_array_equal(images.resize(locked, (30, 50)), found)
    np.testing.assert_array_equal(images.resize(flipped, (30, 50)), images.resize(flipped.copy(), (30, 50)))


@settings(deadline=None)
@given(old=st.tuples(*[st.integers(1, 40)] * 2), new=st.tuples(*[st.integers(1, 60)] * 2))
def test_official_resize_is_bilinear_with_half_pixel_centres(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(old[0] * 41 + old[1]).integers(0, 256, (*old, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(tensor, new, mode="bilinear", align_corners=False)
    got = images.resize(image, new, "official")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected[0].permute(1, 2, 0).numpy(), atol=2e-3)


def test_official_resize_does_not_antialias() -> None:
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::8] = 255  # at 1/8, only columns 3 and 4 of every eight are looked at
    assert images.resize(stripes, (1, 8), "official").max() == 0
    assert images.resize(stripes, (1, 8), "effdet").min() > 5


@settings(deadline=None)
@given(
    scale=st.floats(0.2, 3),
    box=st.tuples(*[st.integers(0, 30)] * 2),
    method=st.sampled_from(["effdet", "official"]),
)
def test_a_square_in_the_picture_lands_where_the_scale_says(
    scale: float, box: tuple[int, int], method: Any
) -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[box[0] : box[0] + 30, box[1] : box[1] + 30] = 255
    size = (round(60 * scale), round(60 * scale))
    prepared, factor = images.prepare(image, size, Preprocessing((0, 0, 0), (255, 255, 255), method))
    assert prepared[0].sum() == pytest.approx((30 * factor) ** 2, rel=0.25)
    rows = (prepared[0].sum(1) * np.arange(0.5, size[0])).sum() / prepared[0].sum()
    assert rows == pytest.approx((box[0] + 15) * factor, abs=1.1)  # sizes are cut to integers


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_prepare_refuses_what_read_does_not_give(image: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        images.prepare(image, (8, 8), LITE)


# ---- settings
@settings(deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 255)] * 3),
    std=st.tuples(*[st.floats(0.1, 255)] * 3),
    resize=st.sampled_from(["effdet", "official"]),
)
def test_preprocessing_survives_json(mean: Any, std: Any, resize: Any) -> None:
    preprocessing = Preprocessing(mean, std, resize)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gamma": 2}, "unknown fields .'gamma'"),
        ({"mean": None}, "mean must be three finite numbers"),
        ({"std": [1, 2]}, "std must be three finite numbers"),
        ({"std": [1, 2, 0]}, "std must be above 0"),
        ({"mean": [1, 2, float("nan")]}, "mean must be three finite numbers"),
        ({"resize": "nearest"}, "'nearest'"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Preprocessing.from_dict({**LITE.to_dict(), **change})


def test_missing_settings_are_named() -> None:
    with pytest.raises(SettingError, match=r"lacks the fields \['resize', 'std'\]"):
        Preprocessing.from_dict({"mean": [0, 0, 0]})


def test_the_presets() -> None:
    grey = np.full((1, 1, 3), 127, np.uint8)
    assert images.normalise(grey, LITE).ravel().tolist() == [0, 0, 0]
    np.testing.assert_allclose(
        images.normalise(np.full((1, 1, 3), 255), IMAGENET).ravel(), [2.2489083, 2.4285715, 2.64], rtol=1e-6
    )
