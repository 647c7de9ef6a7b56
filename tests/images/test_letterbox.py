"""From an RGB array to the network's input: resizing, letterboxing, normalization."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.images import letterbox as images
from efficientdet.images.letterbox import IMAGENET, LITE, Preprocessing
from efficientdet.settings import to_dict

SIDES = st.integers(1, 4000)
SIZES = st.tuples(st.integers(1, 1536), st.integers(1, 1536))
SIDES_SMALL = st.tuples(st.integers(1, 90), st.integers(1, 90))


def gradient(height: int = 24, width: int = 40) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 255 / max(height - 1, 1), columns * 255 / max(width - 1, 1), (rows + columns) % 256]
    return np.stack(planes, axis=2).astype(np.uint8)


# ---- letterbox
@settings(deadline=None)
@given(image_size=st.tuples(SIDES, SIDES), size=SIZES, method=st.sampled_from(["effdet", "official"]))
def test_the_letterbox_fits_and_fills_one_side(image_size: tuple[int, int], size: tuple[int, int], method: Any) -> None:
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
def test_padding_is_the_mean_color_and_white_stays_white(
    image_size: tuple[int, int], size: tuple[int, int], preprocessing: Preprocessing
) -> None:
    white = np.full((*image_size, 3), 255, np.uint8)
    prepared, _ = images.letterbox(white, size, preprocessing)
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


def test_prepare_normalizes_the_resized_picture_at_the_top_left() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    prepared, scale = images.letterbox(image, (64, 60), IMAGENET)
    assert scale == 0.4
    resized = images.resize(image, (40, 60))
    expected = (resized - np.array(IMAGENET.mean)) / IMAGENET.std
    np.testing.assert_allclose(prepared[:, :40].transpose(1, 2, 0), expected, atol=1e-5)
    np.testing.assert_array_equal(images.normalize_and_pad(resized, (64, 60), IMAGENET), prepared)


@settings(deadline=None)
@given(old=SIDES_SMALL, new=SIDES_SMALL, seed=st.integers(0, 9), data=st.data())
def test_resize_is_pillows(old: tuple[int, int], new: tuple[int, int], seed: int, data: st.DataObject) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    left, top = data.draw(st.floats(0, old[1] / 2, width=32)), data.draw(st.floats(0, old[0] / 2, width=32))
    for box in (None, (left, top, float(old[1]), float(old[0]))):
        pillows = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR, box))
        np.testing.assert_array_equal(images.resize(image, new, box=box), pillows)


@pytest.mark.parametrize("method", ["effdet", "official"])
def test_a_part_is_resized_as_the_same_part_of_the_whole(method: Any) -> None:
    image = gradient(40, 60)
    whole = images.resize(image, (80, 120), method).astype(float)
    part = images.resize(image, (40, 40), method, box=(10.0, 10.0, 30.0, 30.0)).astype(float)
    assert np.abs(part - whole[20:60, 20:60]).max() <= 1


@settings(deadline=None)
@given(old=st.tuples(*[st.integers(1, 40)] * 2), new=st.tuples(*[st.integers(1, 60)] * 2))
def test_official_resize_is_bilinear_with_half_pixel_centers(old: tuple[int, int], new: tuple[int, int]) -> None:
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
def test_a_square_in_the_picture_lands_where_the_scale_says(scale: float, box: tuple[int, int], method: Any) -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[box[0] : box[0] + 30, box[1] : box[1] + 30] = 255
    size = (round(60 * scale), round(60 * scale))
    prepared, factor = images.letterbox(image, size, Preprocessing((0, 0, 0), (255, 255, 255), method))
    assert prepared[0].sum() == pytest.approx((30 * factor) ** 2, rel=0.25)
    rows = (prepared[0].sum(1) * np.arange(0.5, size[0])).sum() / prepared[0].sum()
    assert rows == pytest.approx((box[0] + 15) * factor, abs=1.1)  # sizes are cut to integers


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_prepare_refuses_what_read_does_not_give(image: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        images.letterbox(image, (8, 8), LITE)


# ---- settings
@settings(deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 255)] * 3),
    std=st.tuples(*[st.floats(0.1, 255)] * 3),
    resize=st.sampled_from(["effdet", "official"]),
)
def test_preprocessing_survives_json(mean: Any, std: Any, resize: Any) -> None:
    preprocessing = Preprocessing(mean, std, resize)
    assert Preprocessing(**json.loads(json.dumps(to_dict(preprocessing)))) == preprocessing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": None}, "mean is None; it must be a list"),
        ({"std": [1, 2]}, "std is .*; it must have 3 values"),
        ({"std": [1, 2, 0]}, "std is .*; it must be above 0"),
        ({"mean": [1, 2, float("nan")]}, "mean is nan; it must be a finite number"),
        ({"resize": "nearest"}, "unknown resize 'nearest'"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingError, UnknownNameError), match=words):
        dataclasses.replace(LITE, **change)


def test_the_presets() -> None:
    gray = np.full((1, 1, 3), 127, np.uint8)
    assert images.normalize_and_pad(gray, (1, 1), LITE).ravel().tolist() == [0, 0, 0]
    np.testing.assert_allclose(
        images.normalize_and_pad(np.full((1, 1, 3), 255), (1, 1), IMAGENET).ravel(),
        [2.2489083, 2.4285715, 2.64],
        rtol=1e-6,
    )
