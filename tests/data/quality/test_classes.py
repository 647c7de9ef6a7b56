from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from efficientdet.data.quality.classes import check_classes
from efficientdet.data.quality.findings import Finding
from efficientdet.data.records import ImageRecord, Records

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
