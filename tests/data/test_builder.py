from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from efficientdet.data import builder
from efficientdet.data.builder import RawBox, RawImage, build, clean_boxes, cleaned, columns_of
from efficientdet.data.records import (
    BOXES_CLIPPED,
    BOXES_DEGENERATE,
    BOXES_OF_SKIPPED,
    BOXES_OUTSIDE,
    COUNTED,
    IGNORED_REGIONS,
    IMAGES_OF_IGNORED,
    IMAGES_SKIPPED,
    IMAGES_WITHOUT_BOXES,
    Records,
)
from efficientdet.errors import DataError

SIZE = (120, 160)  # height, width
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-300, 300) | st.integers(-300, 300)
boxes = st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=8)
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(boxes, sizes)
def test_whatever_is_kept_is_a_box_within_the_image(
    given_boxes: list[tuple[float, ...]], size: tuple[int, int]
) -> None:
    clean = clean_boxes(np.array(given_boxes, dtype=np.float64).reshape(-1, 4), size)
    kept = clean.boxes_xyxy[clean.kept]
    assert kept.dtype == np.float32
    assert (kept[:, :2] >= 0).all()
    assert (kept[:, 2:] <= np.array([size[1], size[0]])).all()
    assert (kept[:, 2:] > kept[:, :2]).all()


@given(boxes, sizes)
def test_every_box_has_one_fate(given_boxes: list[tuple[float, ...]], size: tuple[int, int]) -> None:
    clean = clean_boxes(np.array(given_boxes, dtype=np.float64).reshape(-1, 4), size)
    fates = clean.kept.astype(int) + clean.outside + clean.degenerate
    assert_array_equal(fates, 1)
    assert not (clean.clipped & ~clean.kept).any()


@given(boxes, sizes)
def test_cleaning_twice_changes_nothing(given_boxes: list[tuple[float, ...]], size: tuple[int, int]) -> None:
    once = clean_boxes(np.array(given_boxes, dtype=np.float64).reshape(-1, 4), size)
    kept = once.boxes_xyxy[once.kept]
    twice = clean_boxes(kept.astype(np.float64), size)
    assert_array_equal(twice.boxes_xyxy, kept)
    assert twice.kept.all()
    assert not twice.clipped.any()


@given(st.integers(0, 159), st.integers(0, 119), st.integers(1, 160), st.integers(1, 120))
def test_boxes_inside_stay_as_they_are(x: int, y: int, width: int, height: int) -> None:
    box = np.array([[x, y, min(x + width, 160), min(y + height, 120)]], dtype=np.float64)
    clean = clean_boxes(box, SIZE)
    assert clean.kept.all()
    assert not clean.clipped.any()
    assert_array_equal(clean.boxes_xyxy, box)


@pytest.mark.parametrize(
    ("box", "fate", "result"),
    [
        ((140, 100, 180, 140), "clipped", (140, 100, 160, 120)),
        ((-5, 2, 10, 20), "clipped", (0, 2, 10, 20)),
        ((-1000, -1000, 1000, 1000), "clipped", (0, 0, 160, 120)),
        ((400, 400, 420, 420), "outside", None),
        ((-20, 10, 0, 20), "outside", None),
        ((160, 10, 170, 20), "outside", None),
        ((50, 50, 30, 60), "degenerate", None),
        ((50, 50, 50, 60), "degenerate", None),
        ((400, 50, 400, 60), "degenerate", None),
        ((150, 10, 150 + 1e-9, 20), "degenerate", None),
    ],
)
def test_fates(box: tuple[float, ...], fate: str, result: tuple[float, ...] | None) -> None:
    clean = clean_boxes(np.array([box], dtype=np.float64), SIZE)
    assert getattr(clean, fate).all()
    assert clean.kept.all() == (result is not None)
    if result is not None:
        assert_array_equal(clean.boxes_xyxy, [result])


def test_rounding_of_the_file_is_not_reported_as_clipping() -> None:
    clean = clean_boxes(np.array([[-0.004, 0, 160.004, 120], [-0.06, 0, 160, 120]]), SIZE)
    assert clean.clipped.tolist() == [False, True]
    assert_array_equal(clean.boxes_xyxy, [[0, 0, 160, 120]] * 2)


def test_smallest_side_is_judged_before_clipping() -> None:
    given_boxes = np.array([[5, 5, 6, 20], [5, 5, 6.5, 20], [159.5, 5, 170, 20]])
    assert clean_boxes(given_boxes, SIZE, smallest_side=1.0).degenerate.tolist() == [True, False, False]


def records_of(tmp_path: Path, *images: RawImage, names: Sequence[str] = ("x",), ids: Sequence[int] = (1,)) -> Records:
    """Records of images of the size that they state, which need not be there."""
    return cleaned(tmp_path / "set.json", tmp_path / "images", columns_of(images), names, ids)


def image(number: int | str, name: str, *boxes: RawBox) -> RawImage:
    return RawImage(name, "place", boxes, SIZE, number)


def test_what_is_changed_is_counted(tmp_path: Path) -> None:
    found = [
        RawBox((10, 10, 50, 40), 1, 11),
        RawBox((140, 100, 180, 140), 0, 12, area=1600.0),
        RawBox((400, 400, 420, 420), 0, 13),
        RawBox((50, 50, 50, 60), 0, 14),
        RawBox((0, 0, 160, 120), 0, 15, is_ignored=True, area=500.0),
    ]
    records = records_of(tmp_path, image("p", "a.jpg", *found), image("q", "b.jpg"), names=["x", "y"], ids=[3, 90])

    expected = {
        BOXES_CLIPPED: 1,
        BOXES_OUTSIDE: 1,
        BOXES_DEGENERATE: 1,
        IGNORED_REGIONS: 1,
        IMAGES_WITHOUT_BOXES: 1,
    }
    assert records.counts == dict.fromkeys(COUNTED, 0) | expected
    assert len(records) == 2
    assert records.training_boxes == 2
    first, second = records.images
    assert first.annotation_ids == [11, 12, 15]
    assert first.labels.tolist() == [1, 0, 0]
    assert first.labels.dtype == np.int64
    assert first.is_ignored.tolist() == [False, False, True]
    # computed, cut down to the clipped box, and as given
    assert_allclose(first.areas, [1200, 400, 500])
    assert first.areas.dtype == np.float32
    assert first.image_size == SIZE
    assert not first.is_negative
    assert second.is_negative
    assert second.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("area", [None, 0.0, -200.0])
def test_areas_that_are_none_come_from_the_box(tmp_path: Path, area: float | None) -> None:
    records = records_of(tmp_path, image(1, "a.jpg", RawBox((10, 10, 50, 40), 0, 1, area=area)))
    assert records.images[0].areas.tolist() == [1200.0]


def test_absurd_areas_stay_finite(tmp_path: Path) -> None:
    records = records_of(tmp_path, image(1, "a.jpg", RawBox((10, 10, 50, 40), 0, 1, area=1e300)))
    assert np.isfinite(records.images[0].areas).all()


def test_an_image_of_crowds_only_is_no_negative(tmp_path: Path) -> None:
    images = [
        image(number, "a.jpg", *(RawBox((10, 10, 50, 40), 0, 1, is_ignored=one) for one in ignored))
        for number, ignored in enumerate([(True,), (True, False), (True, True)])
    ]
    records = records_of(tmp_path, *images)
    assert not any(image.is_negative for image in records.images)
    assert records.counts[IMAGES_WITHOUT_BOXES] == 0
    assert records.counts[IMAGES_OF_IGNORED] == 2


def test_missing_images_are_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    there, gone = image(1, "a.png"), image(2, "gone.jpg", *[RawBox((1, 2, 3, 4), 0, n) for n in range(3)])
    (tmp_path / "images").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png")
    source, folder = tmp_path / "set.json", tmp_path / "images"
    with pytest.raises(DataError, match="place: the image 'gone.jpg' is not in .*images"):
        build(source, [folder], [there, gone], ["x"])
    records = build(source, [folder], [there, gone], ["x"], skip_missing=True)
    assert len(records) == 1
    assert records.counts[IMAGES_SKIPPED] == 1
    assert records.counts[BOXES_OF_SKIPPED] == 3
    with pytest.raises(DataError, match=r"set.json: none of its images .*\(1 missing\)"):
        build(source, [folder], [gone], ["x"], skip_missing=True)


def test_boxes_in_fractions_are_scaled_to_their_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    found = RawImage("a.png", "place", [RawBox((0.25, 0.5, 0.5, 1.5), 0, 1)])
    records = build(tmp_path, [tmp_path], [found], ["x"], in_fractions=True)
    assert records.images[0].boxes_xyxy.tolist() == [[10, 15, 20, 30]]
    assert records.counts[BOXES_CLIPPED] == 1 and records.category_ids == (0,)


def test_of_very_many_images_a_sample_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "MEASURED", 10)
    monkeypatch.setattr(builder, "SAMPLE", 4)
    monkeypatch.setattr(builder, "LOOKED_UP_ONE_BY_ONE", 5)
    images = [image(number, f"{number}.png") for number in range(12)]
    images[5] = images[5]._replace(stated_size=None)
    for number in range(12):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{number}.png")
    records = build(tmp_path, [tmp_path], images, ["x"])
    assert {one.image_size for one in records.images} == {SIZE}
    assert records.counts[builder.SIZES_NOT_CHECKED] == 7
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match="the image '3.png' is not in"):
        build(tmp_path, [tmp_path], images, ["x"])


def test_to_coco_gives_own_ids_and_crowds(tmp_path: Path) -> None:
    found = [RawBox((10, 12, 50, 40), 1, 0), RawBox((0, 0, 160, 120), 0, 1, is_ignored=True, area=500.0)]
    records = records_of(tmp_path, image(7, "a.jpg", *found), image(9, "b.jpg"), names=["x", "y"], ids=[3, 90])
    content = records.to_coco()
    assert content["images"] == [
        {"id": 7, "file_name": "a.jpg", "width": 160, "height": 120},
        {"id": 9, "file_name": "b.jpg", "width": 160, "height": 120},
    ]
    assert content["categories"] == [{"id": 3, "name": "x"}, {"id": 90, "name": "y"}]
    # Annotation id 0 would count as "not matched" in the evaluators, so ids start at 1.
    assert content["annotations"] == [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 12, 40, 28], "area": 1120.0, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 160, 120], "area": 500.0, "iscrowd": 1},
    ]
