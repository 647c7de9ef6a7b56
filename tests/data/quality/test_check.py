"""The whole check, on every bad annotation and on the four datasets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientdet.data.quality.check import check_splits, quick_check, read_all
from efficientdet.data.quality.findings import Finding, grouped
from efficientdet.data.read_split import read_split
from efficientdet.errors import MissingSplitError
from efficientdet.family import find_spec

pytest.importorskip("imagehash", reason="imagehash is missing (extra data)")
SPEC = find_spec("lite0")
SIZE = SPEC.image_size

# Code, and ids of the image and annotation where there are such, by file of COCO JSON.
BAD: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    "missing_categories.json": ("annotation-unreadable", None, ()),
    "missing_bbox.json": ("annotation-unreadable", None, (1,)),
    "nan_box.json": ("annotation-unreadable", None, (1,)),
    "string_in_box.json": ("annotation-unreadable", None, (1,)),
    "three_numbers.json": ("annotation-unreadable", None, (1,)),
    "duplicate_annotation_ids.json": ("annotation-unreadable", None, (1,)),
    "duplicate_image_ids.json": ("annotation-unreadable", 1, ()),
    "unknown_category.json": ("annotation-unreadable", None, (1,)),
    "unknown_image.json": ("annotation-unreadable", None, (1,)),
    "missing_image_file.json": ("image-missing", 3, ()),
    "path_traversal.json": ("annotation-unreadable", 1, ()),
    "size_mismatch.json": ("image-size", 1, ()),
    "truncated.json": ("annotation-unreadable", None, ()),
    "empty.json": ("annotation-unreadable", None, ()),
    "list_at_top.json": ("annotation-unreadable", None, ()),
    "box_fully_outside.json": ("box-outside", 1, None),
    "negative_width.json": ("box-empty", 1, None),
    "zero_area.json": ("box-empty", 1, None),
    "no_annotations.json": ("no-boxes", None, ()),
    "crowd_only.json": ("no-boxes", None, ()),
}
# Accepted, and found to have nothing worse than a warning.
SOUND = ("good.json", "box_partly_outside.json", "id_gaps.json", "zero_based_ids.json", "missing_area.json")


def check(data: Path) -> list[Finding]:
    reading = read_all(data)
    found = check_splits(reading.splits, SPEC, SIZE)[0] if reading.splits else []
    return reading.findings + found


def test_every_file_of_the_manifest_is_tested_here(shared_data: Path) -> None:
    manifest = json.loads((shared_data / "bad_annotations" / "manifest.json").read_text())
    assert {name for name in manifest if name.endswith(".json")} == {*BAD, *SOUND}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_has_an_error_that_says_where(shared_data: Path, name: str) -> None:
    code, image_id, annotation_ids = BAD[name]
    errors = [one for one in check(shared_data / "bad_annotations" / name) if one.severity == "error"]
    found = next(one for one in errors if one.code == code)
    assert found.image_id == image_id or image_id is None
    assert annotation_ids is None or found.annotation_ids == annotation_ids
    assert name in found.what or name in str(found.file) or found.image_id is not None
    # The reader refuses the file exactly where the check finds an entry that cannot be read.
    manifest = json.loads((shared_data / "bad_annotations" / "manifest.json").read_text())
    refused = {"annotation-unreadable", "image-missing", "image-size", "exif-rotation"}
    assert (manifest[name]["expect"] == "reject") == bool(refused & {one.code for one in errors})


@pytest.mark.parametrize("name", SOUND)
def test_an_acceptable_file_has_no_error(shared_data: Path, name: str) -> None:
    assert [one for one in check(shared_data / "bad_annotations" / name) if one.severity == "error"] == []


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("yolo_class_out_of_range.txt", "line 1"),
        ("yolo_bad_number.txt", "line 1, field 3"),
        ("yolo_pixels_instead_of_fractions.txt", "line 1"),
        ("yolo_empty.txt", None),
    ],
)
def test_bad_yolo_labels(shared_data: Path, tmp_path: Path, name: str, place: str | None) -> None:
    """The faulty line is named, and the sound image beside it is still read."""
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    for image in ("a", "b"):
        shutil.copy(shared_data / "bad_annotations" / "images" / f"{image}.jpg", tmp_path / "images" / "train")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [x, y]\n")
    shutil.copy(shared_data / "bad_annotations" / name, tmp_path / "labels" / "train" / "a.txt")
    (tmp_path / "labels" / "train" / "b.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    reading = read_all(tmp_path)
    errors = [one for one in reading.findings if one.severity == "error"]
    assert reading.splits["train"].training_boxes >= 1
    assert [one.code for one in errors] == (["annotation-unreadable"] if place else [])
    assert place is None or ("a.txt" in errors[0].what and place in errors[0].what)


@pytest.mark.parametrize("name", ["voc_billion_laughs.xml", "voc_external_entity.xml", "voc_good.xml"])
def test_bad_voc_files(shared_data: Path, tmp_path: Path, name: str) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for image in ("a", "b"):
        shutil.copy(shared_data / "bad_annotations" / "images" / f"{image}.jpg", tmp_path / "JPEGImages")
    good = (shared_data / "bad_annotations" / "voc_good.xml").read_text()
    (tmp_path / "Annotations" / "b.xml").write_text(good.replace("a.jpg", "b.jpg"))
    shutil.copy(shared_data / "bad_annotations" / name, tmp_path / "Annotations" / "a.xml")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    reading = read_all(tmp_path)
    errors = [one for one in reading.findings if one.severity == "error"]
    assert reading.splits["train"].training_boxes >= 1
    assert [one.code for one in errors] == ([] if name == "voc_good.xml" else ["annotation-unreadable"])
    assert name == "voc_good.xml" or "a.xml" in errors[0].what


def test_every_fault_of_a_file_is_found(tmp_path: Path, write: Callable[..., Path], written: Any) -> None:
    """Not the first one alone."""
    write(tmp_path, "train", [written("a.png", [(1, [1, 2, 30, 40])] * 6), written("b.png"), written("c.png")])
    path = tmp_path / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["bbox"] = [1, 2, 3]
    content["annotations"][3]["category_id"] = 9
    content["annotations"][4]["image_id"] = 9
    content["images"][1]["width"] = 999
    content["images"][2]["file_name"] = "../c.png"
    path.write_text(json.dumps(content))
    reading = read_all(path)
    named = [(one.code, one.image_id, one.annotation_ids) for one in reading.findings]
    assert sorted((row for row in named if row[2]), key=str) == [
        ("annotation-unreadable", 1, (2,)), ("annotation-unreadable", 1, (4,)), ("annotation-unreadable", None, (5,)),
    ]  # fmt: skip
    assert sorted((row[:2] for row in named if not row[2]), key=str) == [
        ("annotation-unreadable", 3), ("image-size", 2),
    ]  # fmt: skip
    assert reading.splits["train"].training_boxes == 3


# The four datasets, and what is known of each


@pytest.mark.parametrize("name", ["cells", "foosball", "microcontrollers", "people"])
def test_real_datasets_have_no_error(shared_data: Path, name: str) -> None:
    reading = read_all(shared_data / name)
    groups = grouped(reading.findings + check_splits(reading.splits, SPEC, SIZE, decode=False)[0])
    known = {"microcontrollers": {"class-untrained"}}.get(name, set())
    assert {code for code, group in groups.items() if group[0].severity == "error"} <= known, groups
    if name == "cells":
        assert "class-unused" not in groups
    if name == "microcontrollers":
        assert "class-rare" in groups or "class-untrained" in groups  # one class has a single box


def test_the_degenerate_boxes_of_cells_are_found(shared_data: Path) -> None:
    reading = read_all(shared_data / "cells" / "voc")
    findings = check_splits(reading.splits, SPEC, SIZE, decode=False)[0]
    assert len([one for one in findings if one.code == "box-empty"]) == 2


def test_small_objects_have_a_low_recall_and_a_way_out(shared_data: Path) -> None:
    train = read_split(shared_data / "foosball", "train")
    _, anchors = check_splits({"train": train}, SPEC, SIZE, decode=False)
    assert anchors is not None and anchors.fit.recall < 0.9
    assert max(one.recall for one in anchors.suggestions) > anchors.fit.recall + 0.1


# Before a training


def test_the_quick_check_opens_no_image(tmp_path: Path, write: Callable[..., Path], written: Any) -> None:
    folder = write(tmp_path, "train", [written("a.png", [(1, [10, 10, 40, 40]), (1, [500, 10, 40, 40])])])
    train = read_split(folder, "train")
    shutil.rmtree(folder / "images")
    codes = {one.code for one in quick_check(train, None, SPEC)}
    assert {"box-outside", "class-unused", "class-rare"} <= codes


def test_a_folder_without_any_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingSplitError, match="no annotations of the split 'train'"):
        read_all(tmp_path)


def test_a_training_split_alone_is_mentioned_unless_it_was_asked_for(
    tmp_path: Path, write: Callable[..., Path], written: Any
) -> None:
    write(tmp_path, "train", [written("a.png", [(1, [10, 10, 40, 40])])])
    assert [one.code for one in read_all(tmp_path).findings] == ["split-missing"]
    assert read_all(tmp_path / "train.json").findings == []
