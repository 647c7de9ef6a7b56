"""Augmentation: whatever happens to the pixels happens to the boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from efficientdet.data.augment import SMALLEST_SIDE, Augmentation, augment, count_too_small
from efficientdet.data.records import ImageRecord, Records
from efficientdet.images.convert import FloatImage, RgbImage
from efficientdet.images.letterbox import IMAGENET, Preprocessing

RAW = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))

sides = st.integers(1, 120)
input_sizes = st.tuples(st.integers(16, 96), st.integers(16, 96))
seeds = st.integers(0, 2**32)
jitters = st.tuples(st.floats(0.1, 2.0), st.floats(0.1, 2.0)).map(lambda pair: (min(pair), max(pair)))
flips = st.sampled_from([0.0, 0.5, 1.0])


def boxes(*rows: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def noise(height: int, width: int) -> RgbImage:
    return np.random.default_rng(7).integers(1, 256, (height, width, 3), dtype=np.uint8)


def run(
    image: RgbImage, given_boxes: NDArray[np.float32], size: tuple[int, int], seed: int = 0,
    jitter: tuple[float, float] = (1.0, 1.0), flip: float = 0.0, preprocessing: Preprocessing = RAW,
) -> tuple[FloatImage, NDArray[np.float32], NDArray[np.bool_]]:  # fmt: skip
    return augment(image, given_boxes, size, preprocessing, Augmentation(jitter, flip), np.random.default_rng(seed))


# ---- boxes
@settings(deadline=None, max_examples=150)
@given(sides, sides, input_sizes, jitters, flips, seeds, st.data())
def test_the_box_lies_where_the_pixels_lie(
    height: int, width: int, size: tuple[int, int], jitter: tuple[float, float], flip: float, seed: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[top:bottom, left:right] = 255

    enlarged = jitter[1] * min(size[0] / height, size[1] / width)
    assume(enlarged <= 4)  # beyond, a crop begins inside the blur between two of the image's pixels
    pixels, moved, kept = run(image, boxes((left, top, right, bottom)), size, seed, jitter, flip)

    rows, columns = np.nonzero(pixels[0] >= 127.5)
    if not kept[0]:
        # Less than a pixel is left of it in one direction at least: at most two touch that, across an edge.
        assert len(rows) == 0 or min(np.ptp(rows), np.ptp(columns)) <= 1
        return
    x1, y1, x2, y2 = moved[0]
    assume(min(x2 - x1, y2 - y1) >= 3)  # thinner ones have no pixel that is all theirs
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(found - moved[0]).max() <= 1.5


@settings(deadline=None, max_examples=100)
@given(sides, sides, input_sizes, jitters, flips, seeds)
def test_boxes_stay_inside_and_dropped_ones_are_flagged(
    height: int, width: int, size: tuple[int, int], jitter: tuple[float, float], flip: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(0, 1, (12, 2, 2)), axis=1).reshape(12, 4) * [width, height, width, height]
    given_boxes = corners.astype(np.float32)

    _, moved, kept = run(noise(height, width), given_boxes, size, seed, jitter, flip)

    assert kept.dtype == np.bool_ and kept.shape == (12,) and moved.dtype == np.float32
    assert (moved[:, :2] >= 0).all()
    assert (moved[:, 2:] <= [size[1], size[0]]).all()
    assert (moved[:, 2:] - moved[:, :2] >= SMALLEST_SIDE - 1e-4).all()
    one_by_one = [run(noise(height, width), box[None], size, seed, jitter, flip) for box in given_boxes]
    assert kept.tolist() == [bool(flag[0]) for _, _, flag in one_by_one]
    np.testing.assert_array_equal(moved, np.concatenate([box for _, box, _ in one_by_one]))


def test_a_box_that_the_crop_cuts_is_clipped_and_one_outside_is_dropped() -> None:
    # The left half of the image, the right half, and a corner; at twice the size a half of each side is seen.
    given_boxes = boxes((0, 0, 50, 100), (50, 0, 100, 100), (0, 0, 10, 10))
    corner_kept = set()
    for seed in range(40):
        _, moved, kept = run(noise(100, 100), given_boxes, (50, 50), seed, jitter=(2.0, 2.0))
        corner_kept.add(bool(kept[2]))
        if kept[0] and kept[1]:
            assert (moved[:2, 2] - moved[:2, 0]).sum() == pytest.approx(50)  # they meet, and fill the view
            assert moved[0, 2] == moved[1, 0]
    assert corner_kept == {True, False}


def test_no_boxes() -> None:
    _, moved, kept = run(noise(20, 30), boxes(), (32, 32), jitter=(0.1, 2.0), flip=0.5)
    assert moved.shape == (0, 4) and moved.dtype == np.float32
    assert kept.shape == (0,) and kept.dtype == np.bool_


def test_what_is_given_stays_as_it_is() -> None:
    image, given_boxes = noise(20, 30), boxes((1, 2, 20, 15))
    image_before, boxes_before = image.copy(), given_boxes.copy()
    run(image, given_boxes, (16, 16), jitter=(0.5, 1.5), flip=1.0)
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(given_boxes, boxes_before)


@settings(deadline=None, max_examples=100)
@given(sides, sides, input_sizes, jitters, seeds)
def test_boxes_counted_as_too_small_are_those_that_are_always_dropped(
    height: int, width: int, size: tuple[int, int], jitter: tuple[float, float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(0, 1, (20, 2, 2)) ** 4, axis=1).reshape(20, 4) * [width, height, width, height]
    one = ImageRecord(1, Path("a.png"), width, height, corners.astype(np.float32), np.zeros(20, dtype=np.int64),
                      np.arange(20) % 5 == 0, np.ones(20, dtype=np.float32), list(range(20)))  # fmt: skip
    counted = count_too_small(Records([one], ("x",), (1,), Path("set")), size, Augmentation(jitter, 0.5))
    largest = (jitter[1], jitter[1])
    trained, kept = one.boxes_xyxy[~one.is_ignored], np.zeros(16, dtype=np.bool_)
    for try_number in range(20):  # at the largest scale, in whatever crop, nothing else is ever left
        kept |= run(noise(height, width), trained, size, try_number, largest, 0.5)[2]
    assert counted <= 16 - kept.sum()
    if jitter[1] <= 1:  # without a crop all others are left
        assert counted == 16 - kept.sum()


# ---- pixels
@settings(deadline=None, max_examples=60)
@given(st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 7)]) | st.tuples(sides, sides), input_sizes, jitters, seeds)
def test_the_result_has_exactly_the_size(
    shape: tuple[int, int], size: tuple[int, int], jitter: tuple[float, float], seed: int
) -> None:
    whole = boxes((0, 0, shape[1], shape[0]))
    pixels, _, _ = run(noise(*shape), whole, size, seed, jitter, flip=0.5, preprocessing=IMAGENET)
    assert pixels.shape == (3, *size)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    assert np.isfinite(pixels).all()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_below_one_the_image_is_padded_with_zeros(flip: float) -> None:
    white = np.full((40, 80, 3), 255, dtype=np.uint8)
    whole = boxes((0, 0, 80, 40))
    pixels, moved, _ = run(white, whole, (64, 64), jitter=(0.5, 0.5), flip=flip, preprocessing=IMAGENET)
    np.testing.assert_allclose(moved[0], [0, 0, 32, 16])  # half of the 64x32 that would fit
    assert (pixels[:, :16, :32] > 1).all()
    assert not pixels[:, 16:].any() and not pixels[:, :, 32:].any()


def test_above_one_a_part_is_seen_anywhere_and_nothing_is_padded() -> None:
    ramp = np.zeros((100, 100, 3), dtype=np.uint8)
    ramp[:] = np.arange(100, 200, dtype=np.uint8)[None, :, None]
    starts = []
    for seed in range(30):
        pixels, _, _ = run(ramp, boxes(), (50, 50), seed, jitter=(2.0, 2.0))
        assert pixels.min() >= 100  # the padding would be 0
        assert np.ptp(pixels[0, 0]) == pytest.approx(49, abs=1.5)  # a half of the ramp
        starts.append(pixels[0, 0, 0])
    assert min(starts) < 110 and max(starts) > 140


def test_a_flip_mirrors_pixels_and_boxes() -> None:
    image, given_boxes = noise(40, 60), boxes((5, 6, 20, 30), (40, 0, 60, 40))
    plain, plain_boxes, _ = run(image, given_boxes, (40, 60), seed=3)
    mirrored, mirrored_boxes, _ = run(image, given_boxes, (40, 60), seed=3, flip=1.0)
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    np.testing.assert_array_equal(mirrored_boxes[:, [2, 1, 0, 3]], plain_boxes * [-1, 1, -1, 1] + [60, 0, 60, 0])


def test_at_scale_one_without_flip_the_image_is_itself() -> None:
    image = noise(24, 36)
    pixels, moved, kept = run(image, boxes((3, 4, 20, 21)), (24, 36))
    np.testing.assert_array_equal(pixels, image.transpose(2, 0, 1))
    np.testing.assert_array_equal(moved, boxes((3, 4, 20, 21)))
    assert kept.all()


# ---- chance
def test_the_same_state_gives_the_same_and_another_gives_another() -> None:
    arguments = (noise(50, 70), boxes((5, 6, 40, 45)), (48, 48))
    first, second, other = (run(*arguments, seed, (0.1, 2.0), 0.5) for seed in (1, 1, 2))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


def test_half_are_flipped_and_scales_spread_over_the_range() -> None:
    whole, sides = boxes((0, 0, 64, 64)), boxes((0, 0, 20, 64))
    draws = [run(noise(64, 64), whole, (64, 64), seed, (0.1, 2.0), 0.5)[1][0, 2] for seed in range(60)]
    assert 15 < (np.array(draws) < 64).sum() < 45
    assert min(draws) < 20
    flipped = [run(noise(64, 64), sides, (64, 64), seed, flip=0.5)[1][0, 0] > 0 for seed in range(60)]
    assert 15 < sum(flipped) < 45


def test_the_resizing_is_that_of_the_preprocessing() -> None:
    """An image halved: TensorFlow's bilinear takes the mean of two by two pixels, Pillow's looks further."""
    image = noise(40, 60)
    mean = image.reshape(20, 2, 30, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    official, _, _ = run(image, boxes(), (20, 30), preprocessing=Preprocessing((0, 0, 0), (1, 1, 1), "official"))
    effdet, _, _ = run(image, boxes(), (20, 30))
    np.testing.assert_allclose(official, mean, rtol=1e-5)
    assert np.abs(effdet - mean).max() > 5
