"""Every layout of a data set that is known is found on disk, and the error says where was sought."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientdet.data.read_split import read_split
from efficientdet.errors import DataError


def write_picture(path: Path, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 30, 30)).save(path)


def write_coco(path: Path, file_name: str, name: str = "cat") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": 1, "file_name": file_name, "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [4, 6, 20, 10]}],
        "categories": [{"id": 5, "name": name}],
    }
    path.write_text(json.dumps(content))


def write_voc(root: Path, split: str, stem: str, names: list[str]) -> None:
    write_picture(root / "JPEGImages" / f"{stem}.png")
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>5</xmin><ymin>7</ymin><xmax>24</xmax><ymax>16</ymax></bndbox>"
        "</object>"
        for name in names
    )
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><filename>{stem}.png</filename>{things}</annotation>"
    )
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a") as file:
        file.write(f"{stem}\n")


def write_yolo(root: Path, images: str, labels: str) -> None:
    write_picture(root / images / "a.png")
    (root / labels).mkdir(parents=True, exist_ok=True)
    # x 4..24 of 40, y 6..16 of 30
    (root / labels / "a.txt").write_text(f"0 {14 / 40} {11 / 30} {20 / 40} {10 / 30}\n")


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [
        ("{s}.json", "images"),
        ("{s}.json", "{s}"),
        ("annotations/{s}.json", "images"),
        ("annotations/instances_{s}.json", "{s}"),
        ("annotations/instances_{s}2017.json", "{s}2017"),
        ("{s}/_annotations.coco.json", "{s}"),
        ("{s}/annotations.json", "{s}/images"),
    ],
)
def test_every_coco_layout_is_found(tmp_path: Path, split: str, annotations: str, pictures: str) -> None:
    write_picture(tmp_path / pictures.format(s=split) / "a.png")
    write_coco(tmp_path / annotations.format(s=split), "a.png")
    records = read_split(tmp_path, split)
    assert records.source == tmp_path / annotations.format(s=split)
    assert records.class_names == ("cat",) and records.category_ids == (5,)
    np.testing.assert_array_equal(records.images[0].boxes_xyxy, [[4, 6, 24, 16]])


def test_val_is_found_where_a_tool_calls_it_valid_and_the_right_split_is_taken(tmp_path: Path) -> None:
    for folder, name in (("train", "cat"), ("valid", "dog"), ("test", "emu")):
        write_picture(tmp_path / folder / "a.png")
        write_coco(tmp_path / folder / "_annotations.coco.json", "a.png", name)
    found = {split: read_split(str(tmp_path), split).class_names for split in ("train", "val", "valid", "test")}
    assert found == {"train": ("cat",), "val": ("dog",), "valid": ("dog",), "test": ("emu",)}


def test_one_annotation_file_is_the_split(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.png")
    write_coco(tmp_path / "whatever.json", "a.png")
    assert len(read_split(tmp_path / "whatever.json", "train")) == 1


def test_voc_splits_share_the_classes_of_the_whole_data_set(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", "a", ["dog", "cat"])
    write_voc(tmp_path, "val", "b", ["dog"])
    write_voc(tmp_path, "test", "c", [])
    train, val, test = (read_split(tmp_path, split) for split in ("train", "val", "test"))
    assert train.class_names == val.class_names == test.class_names == ("cat", "dog")
    np.testing.assert_array_equal(val.images[0].labels, [1])
    np.testing.assert_array_equal(val.images[0].boxes_xyxy, [[4, 6, 24, 16]])
    assert [len(records) for records in (train, val, test)] == [1, 1, 1]
    assert test.images[0].is_negative


@pytest.mark.parametrize(
    ("config", "images", "labels"),
    [
        ("data.yaml", "images/val", "labels/val"),
        ("data.yml", "images/val", "labels/val"),
        ("data.yaml", "val/images", "val/labels"),
        ("data.yaml", "valid/images", "valid/labels"),
        ("data.yaml", "elsewhere/images", "elsewhere/labels"),
        ("dataset.yml", "elsewhere/images", "elsewhere/labels"),
        ("classes.txt", "images/val", "labels/val"),
    ],
)
def test_every_yolo_layout_is_found(tmp_path: Path, config: str, images: str, labels: str) -> None:
    write_yolo(tmp_path, images, labels)
    yaml = f"val: {images}\nnames: [cat]\n" if "else" in images else "names: [cat]\n"
    (tmp_path / config).write_text("cat\n" if config == "classes.txt" else yaml)
    records = read_split(tmp_path, "val")
    assert records.class_names == ("cat",)
    np.testing.assert_allclose(records.images[0].boxes_xyxy, [[4, 6, 24, 16]], atol=1e-4)
    if config != "classes.txt":
        assert len(read_split(tmp_path / config, "val")) == 1


@pytest.mark.parametrize(("split", "also"), [("train", []), ("val", ["'valid'", "'validation'"]), ("extra", [])])
def test_the_error_says_where_was_sought(tmp_path: Path, split: str, also: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_split(tmp_path, split)
    message = str(caught.value)
    places = [f"{split}.json", f"annotations/instances_{split}2017.json", f"ImageSets/Main/{split}.txt"]
    for part in [str(tmp_path), f"'{split}'", "data.yaml", f"images/{split}", *places, *also]:
        assert part in message
    assert ("valid" in message) == bool(also)


def test_no_data_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such dataset"):
        read_split(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_missing_pictures_are_an_error_or_skipped_and_counted(tmp_path: Path, layout: str) -> None:
    if layout == "voc":
        write_voc(tmp_path, "train", "a", ["cat"])
        write_voc(tmp_path, "train", "b", ["cat"])
        (tmp_path / "JPEGImages" / "b.png").unlink()
    else:
        write_picture(tmp_path / "images" / "a.png")
        write_coco(tmp_path / "train.json", "a.png")
        content = json.loads((tmp_path / "train.json").read_text())
        content["images"].append({"id": 2, "file_name": "b.png"})
        (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"b\.png"):
        read_split(tmp_path, "train")
    records = read_split(tmp_path, "train", skip_missing=True)
    assert len(records) == 1 and records.counts["images skipped: file missing"] == 1
