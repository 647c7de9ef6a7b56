from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.boxes import pairwise_iou
from efficientdet.data.coco import read_coco
from efficientdet.data.quality.annotations import SAME_OBJECT_IOU, check_boxes, check_classes
from efficientdet.data.quality.findings import Finding
from efficientdet.data.records import ImageRecord, Records


@pytest.fixture
def found(tmp_path: Path, write: Callable[..., Path], written: Any) -> Callable[..., dict[str, Finding]]:
    """Findings by code on one image of 160x120 pixels with boxes (category id, xywh)."""

    def check(*boxes: tuple[int, list[float]], **extra: Any) -> dict[str, Finding]:
        write(tmp_path, "train", [written("a.jpg", boxes, extra=extra)])
        findings = list(check_boxes(read_coco(tmp_path / "train.json"), "train"))
        assert len({one.code for one in findings}) == len(findings)
        return {one.code: one for one in findings}

    return check


def test_ordinary_boxes_are_not_mentioned(found: Callable[..., dict[str, Finding]]) -> None:
    assert found((1, [10, 10, 30, 20]), (1, [30, 10, 30, 20]), (2, [0, 0, 150, 119]), (1, [150, 5, 10.5, 30])) == {}


@pytest.mark.parametrize(
    ("code", "box", "text"),
    [
        ("box-outside", [200, 10, 30, 20], "(200, 10, 230, 30) is outside the image of 160x120"),
        ("box-outside", [-40, -40, 30, 20], "outside"),
        ("box-empty", [10, 10, 0, 20], "width of 0 and a height of 20"),
        ("box-empty", [50, 10, -20, 20], "width of -20"),
        ("box-cut", [150, 10, 40, 20], "75% of the box (150, 10, 190, 30) lie beyond"),
        ("box-tiny", [10, 10, 2, 40], "2x40 pixels"),
        ("box-whole-image", [0, 0, 160, 120], "as large as the image"),
    ],
)
def test_boxes_that_hardly_can_be_are_named(
    found: Callable[..., dict[str, Finding]], tmp_path: Path, code: str, box: list[float], text: str
) -> None:
    findings = found((1, [10, 50, 20, 20]), (1, box))
    assert list(findings) == [code]
    finding = findings[code]
    assert text in finding.what
    assert (finding.split, finding.image_id, finding.annotation_ids) == ("train", 1, (2,))
    assert finding.file == str(tmp_path / "images" / "a.jpg")


def test_two_boxes_on_one_object(found: Callable[..., dict[str, Finding]]) -> None:
    twice = found((1, [10, 10, 40, 40]), (1, [11, 10, 40, 40]), (1, [60, 10, 40, 40]))
    assert list(twice) == ["box-repeated"]
    assert twice["box-repeated"].annotation_ids == (1, 2) and "IoU of 0.95" in twice["box-repeated"].what
    both = found((1, [10, 10, 40, 40]), (2, [10, 10, 40, 40]))
    assert (
        list(both) == ["box-two-classes"]
        and "'x'" in both["box-two-classes"].what
        and "'y'" in both["box-two-classes"].what
    )


def test_ignored_regions_may_lie_on_objects_and_be_of_any_size(found: Callable[..., dict[str, Finding]]) -> None:
    assert found((1, [10, 10, 40, 40]), (1, [10, 10, 40, 40]), (1, [0, 0, 160, 120]), iscrowd=1) == {}


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_every_repeated_box_of_a_crowd_is_found(seed: int) -> None:
    """The same pairs as from comparing each box with each, image by image."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(4):
        base = random.uniform(0, 60, (6, 4))
        base[:, 2:] = base[:, :2] + random.uniform(4, 40, (6, 2))
        boxes = np.clip(np.repeat(base, 3, 0) + random.normal(0, 0.6, (18, 4)), 0, 100).astype(np.float32)
        images.append(
            ImageRecord(number, Path(f"{number}.jpg"), 100, 100, boxes, random.integers(0, 2, 18),
                        random.random(18) < 0.2, np.ones(18, np.float32), list(range(18)))
        )  # fmt: skip
    records = Records(images, ("x", "y"), (1, 2), Path("x"))
    expected = set()
    for image in images:
        boxes = torch.from_numpy(image.boxes_xyxy)
        overlap = np.triu(pairwise_iou(boxes, boxes).numpy(), 1) >= SAME_OBJECT_IOU
        overlap &= ~(image.is_ignored[:, None] | image.is_ignored[None, :])
        expected |= {(image.image_id, *pair) for pair in np.argwhere(overlap).tolist()}
    pairs = [one for one in check_boxes(records, "train") if one.code in ("box-repeated", "box-two-classes")]
    assert {(one.image_id, *one.annotation_ids) for one in pairs} == expected


def test_a_box_far_away_is_not_drawn(found: Callable[..., dict[str, Finding]]) -> None:
    assert found((1, [1e7, 0, 5, 5]))["box-outside"].boxes_xyxy == ()
    assert found((1, [170, 0, 5, 5]))["box-outside"].boxes_xyxy == ((170, 0, 175, 5),)


NAMES = ("cat", "dog", "owl")


def records_of(counts: list[int], names: tuple[str, ...] = NAMES, first_id: int = 1, ignored: int = 0) -> Records:
    """A split with one image that has so many boxes of each class, and an ignored region of the first class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.concatenate([labels, np.zeros(ignored, np.int64)])
    count = len(labels)
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (count, 1))
    is_ignored = np.arange(count) >= count - ignored
    record = ImageRecord(
        1, Path("a.jpg"), 50, 50, boxes, labels, is_ignored, np.zeros(count, np.float32), list(range(count))
    )
    ids = tuple(range(first_id, first_id + len(names)))
    return Records([record], names, ids, Path("train.json"))


def codes(**splits: Records) -> dict[str, Finding]:
    findings = list(check_classes(splits))
    return {finding.code: finding for finding in findings}


def test_counts_leave_ignored_regions_out() -> None:
    assert records_of([3, 0, 2], ignored=4).boxes_by_class().tolist() == [3, 0, 2]


def test_a_sound_dataset_is_not_mentioned() -> None:
    assert codes(train=records_of([30, 20, 40]), val=records_of([3, 2, 4])) == {}


@pytest.mark.parametrize(
    ("code", "train", "val", "text"),
    [
        ("class-unused", [30, 20, 0], [3, 2, 0], "1 of 3 classes have no box: 'owl'"),
        ("class-untrained", [30, 20, 0], [3, 2, 4], "'owl' has no box in train (boxes in val 4)"),
        ("class-unmeasured", [30, 20, 40], [3, 2, 0], "none in val: 'owl'"),
        ("class-rare", [30, 20, 4], [3, 2, 4], "1 classes have fewer than 10 boxes in train, at least 4: 'owl'"),
        ("class-imbalance", [900, 20, 40], [3, 2, 4], "'cat' has 900 boxes in train, 'dog' 20"),
        ("class-first-unused", [0, 20, 40], [0, 2, 4], "the first class, 'cat', has no box"),
        ("no-boxes", [0, 0, 0], [3, 2, 4], "none of its 1 images has a box"),
    ],
)
def test_classes_are_named(code: str, train: list[int], val: list[int], text: str) -> None:
    found = codes(train=records_of(train), val=records_of(val))
    assert text in found[code].what


def test_background_is_no_class() -> None:
    found = codes(train=records_of([0, 20, 40], ("Background", "dog", "owl")))
    assert "class-background" in found and "class-first-unused" not in found
    assert "class-background" not in codes(train=records_of([20, 20, 40], ("Background", "dog", "owl")))


def test_ids_that_count_from_another_number_are_a_shift() -> None:
    found = codes(train=records_of([30, 20, 40]), val=records_of([3, 2, 4], first_id=0))
    assert list(found) == ["class-shift"]
    assert "shifted by -1" in found["class-shift"].what and found["class-shift"].split == "val"


def test_other_classes_are_a_mismatch_and_not_counted_together() -> None:
    found = codes(train=records_of([30, 20, 40]), val=records_of([3, 2, 0], ("cat", "owl", "dog")))
    assert list(found) == ["class-mismatch"]
    assert "2 is 'dog' in train and 'owl' here" in found["class-mismatch"].what


def test_many_names_are_cut() -> None:
    names = tuple(f"c{number}" for number in range(90))
    found = codes(train=records_of([50, *[0] * 89], names))
    assert found["class-unused"].count == 89 and "and 81 more" in found["class-unused"].what


def test_images_without_a_box_are_counted() -> None:
    records = records_of([30, 20, 40])
    empty = records_of([0, 0, 0]).images[0]
    both = Records([*records.images, empty], records.class_names, records.category_ids, records.source)
    assert "1 of 2 images (50%) have no box" in codes(train=both)["images-empty"].what
