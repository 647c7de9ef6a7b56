from __future__ import annotations

import json
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from efficientdet.data.coco import read_coco
from efficientdet.data.records import (
    BOXES_CLIPPED,
    BOXES_DEGENERATE,
    EVERY_CLASS,
    IGNORED_REGIONS,
    IMAGES_SKIPPED,
    IMAGES_WITHOUT_BOXES,
)
from efficientdet.data.voc import read_voc
from efficientdet.errors import DataError

CLASSES = ("x", "y")
REJECTED = {
    "voc_billion_laughs.xml": ["line 1", "DOCTYPE", "ENTITY"],
    "voc_external_entity.xml": ["line 1", "DOCTYPE", "ENTITY"],
    "voc_unknown_class.xml": ["object 1", "'name'", "'zebra'", "x, y"],
}


def test_every_file_of_the_manifest_is_tested_here(shared_data: Path) -> None:
    manifest = json.loads((shared_data / "bad_annotations" / "manifest.json").read_text())
    files = {name: entry["expect"] for name, entry in manifest.items() if name.endswith(".xml")}
    assert files == dict.fromkeys(REJECTED, "reject") | {"voc_good.xml": "accept"}


@pytest.mark.parametrize("name", REJECTED)
def test_bad_files_are_refused_by_place_and_field(shared_data: Path, name: str) -> None:
    path = shared_data / "bad_annotations" / name
    with pytest.raises(DataError) as caught:
        read_voc(path, CLASSES)
    for part in [str(path), *REJECTED[name]]:
        assert part in str(caught.value)


def test_good_file_is_read(shared_data: Path) -> None:
    records = read_voc(shared_data / "bad_annotations" / "voc_good.xml", CLASSES)
    assert records.training_boxes == 1
    assert records.class_names == CLASSES
    assert_array_equal(records.images[0].boxes_xyxy, [[9, 9, 50, 40]])


def test_cells_give_the_boxes_of_their_json(shared_data: Path) -> None:
    records = read_voc(shared_data / "cells" / "voc")
    assert records.class_names == ("Platelets", "RBC", "WBC")
    assert records.counts[BOXES_DEGENERATE] == 2
    assert len(records) == 364
    of_voc = {
        record.path.name: (record.boxes_xyxy, [records.class_names[label] for label in record.labels])
        for record in records.images
    }
    seen = 0
    for split in ("train", "val", "test"):
        of_split = read_coco(shared_data / "cells" / f"{split}.json")
        for record in of_split.images:
            boxes, names = of_voc[record.path.name]
            assert_array_equal(boxes, record.boxes_xyxy)
            assert names == [of_split.class_names[label] for label in record.labels]
            seen += 1
    assert seen == 364


def test_a_split_of_cells_follows_its_list(shared_data: Path) -> None:
    names = ("RBC", "WBC", "Platelets")
    records = read_voc(shared_data / "cells" / "voc", names, split="test")
    expected = read_coco(shared_data / "cells" / "test.json")
    assert {record.path for record in records.images} == {record.path for record in expected.images}
    assert records.class_names == names
    assert records.training_boxes == expected.training_boxes


def thing(name: str = "x", box: tuple[object, ...] = (1, 1, 40, 30), more: str = "") -> str:
    corners = "".join(
        f"<{field}>{value}</{field}>" for field, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def voc(*objects: str, file_name: str = "a.png", size: tuple[object, object] | None = (40, 30)) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{file_name}</filename>{stated}{''.join(objects)}</annotation>"


def write(folder: Path, *contents: str, pictures: str = "JPEGImages") -> Path:
    (folder / "Annotations").mkdir(exist_ok=True)
    for index, content in enumerate(contents):
        (folder / "Annotations" / f"{index}.xml").write_text(content)
    (folder / pictures).mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(folder / pictures / name)
    return folder


def test_coordinates_become_zero_based_with_exclusive_ends(tmp_path: Path) -> None:
    records = read_voc(write(tmp_path, voc(thing(box=(1, 1, 40, 30)), thing(box=(3, 4, "9.5", 12)))))
    assert_array_equal(records.images[0].boxes_xyxy, [[0, 0, 40, 30], [2, 3, 9.5, 12]])
    assert records.counts[BOXES_CLIPPED] == 0


def test_zero_based_files_are_clipped_and_counted(tmp_path: Path) -> None:
    records = read_voc(write(tmp_path, voc(thing(box=(0, 0, 10, 10)))))
    assert_array_equal(records.images[0].boxes_xyxy, [[0, 0, 10, 10]])
    assert records.counts[BOXES_CLIPPED] == 1


def test_degenerate_and_difficult_objects_are_counted(tmp_path: Path) -> None:
    difficult = thing(more="<difficult>1</difficult>")
    records = read_voc(write(tmp_path, voc(thing(box=(5, 5, 5, 20)), thing(box=(9, 5, 4, 20)), difficult)))
    assert records.counts[BOXES_DEGENERATE] == 2
    assert records.counts[IGNORED_REGIONS] == 1
    assert records.training_boxes == 0 and records.images[0].is_ignored.tolist() == [True]
    assert not records.images[0].is_negative


def test_masks_need_no_name_and_make_no_class(tmp_path: Path) -> None:
    mask = thing(more="<ignore>1</ignore>").replace("<name>x</name>", "")
    named = thing("y", more="<ignore>1</ignore>")
    records = read_voc(write(tmp_path, voc(mask), voc(thing(), named, file_name="b.png")))
    assert records.class_names == ("x", "y")
    assert [record.labels.tolist() for record in records.images] == [[EVERY_CLASS], [0, 1]]
    assert [record.is_ignored.tolist() for record in records.images] == [[True], [False, True]]
    assert records.images[0].is_negative and records.counts[IGNORED_REGIONS] == 2


@pytest.mark.parametrize("field", ["difficult", "ignore"])
def test_flags_are_0_or_1(tmp_path: Path, field: str) -> None:
    read_voc(write(tmp_path, voc(thing(more=f"<{field}> </{field}>"))))
    with pytest.raises(DataError, match=f"0.xml: object 1, field '{field}': 'yes' is neither 0 nor 1"):
        read_voc(write(tmp_path, voc(thing(more=f"<{field}>yes</{field}>"))))


def test_parts_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    records = read_voc(write(tmp_path, voc(thing(more=part))))
    assert records.class_names == ("x",)
    assert records.training_boxes == 1


def test_pictures_without_objects_are_negatives(tmp_path: Path) -> None:
    records = read_voc(write(tmp_path, voc(thing()), voc(file_name="b.png")))
    assert records.counts[IMAGES_WITHOUT_BOXES] == 1
    assert [record.image_id for record in records.images] == [1, 2]
    assert records.images[1].is_negative


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_sizes_left_out_come_from_the_picture(tmp_path: Path, size: tuple[int, int] | None) -> None:
    assert read_voc(write(tmp_path, voc(thing(), size=size))).images[0].image_size == (30, 40)


@pytest.mark.parametrize("folder", ["images", "Annotations", "JPEGImages"])
def test_pictures_are_found_in_the_usual_folders(tmp_path: Path, folder: str) -> None:
    write(tmp_path, voc(thing()), pictures=folder)
    assert read_voc(tmp_path).images[0].path == tmp_path / folder / "a.png"
    assert read_voc([tmp_path / "Annotations" / "0.xml"]).images[0].path == tmp_path / folder / "a.png"
    assert read_voc(tmp_path / "Annotations", image_folder=tmp_path / folder).training_boxes == 1


def test_missing_pictures_are_skipped_on_request(tmp_path: Path) -> None:
    write(tmp_path, voc(thing()), voc(thing(), file_name="gone.png"))
    with pytest.raises(DataError, match=r"1\.xml: the image 'gone.png'"):
        read_voc(tmp_path)
    records = read_voc(tmp_path, skip_missing=True)
    assert records.counts[IMAGES_SKIPPED] == 1
    assert len(records) == 1


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (voc(thing(box=(1, "ten", 5, 5))), ["object 1", "'bndbox/ymin'", "'ten'"]),
        (voc(thing(), thing(box=(1, 1, "nan", 5))), ["object 2", "'bndbox/xmax'", "'nan'"]),
        (voc(thing(box=(1, 1, 5, ""))), ["object 1", "'bndbox/ymax'", "missing"]),
        (voc("<object><name>x</name></object>"), ["object 1", "'bndbox/xmin'", "missing"]),
        (voc(thing(name=" ")), ["object 1", "'name'"]),
        (voc(thing(), file_name=""), ["'filename'"]),
        (voc(thing(), file_name="../b.png"), ["'filename'", "../b.png"]),
        (voc(thing(), file_name="x" * 300), ["the image 'xxx", "is not in"]),
        (f"<{'x' * 5000}/>", ["the top element is <xxx"]),
        ("<!DOCTYPE annotation [\n]>" + voc(thing()), ["line 1", "DOCTYPE"]),
        ('<?xml version="1.0"?>\n\n<!DOCTYPE a [<!ENTITY b "c">]>' + voc(thing()), ["line 3", "ENTITY"]),
        ("<annotation>" + "<a>" * 50_000, ["not valid XML"]),
        (voc(thing(), size=(41, 30)), ["'width'", "41x30", "40x30"]),
        (voc(thing(), size=("w", 30)), ["'size/width'", "'w'"]),
        (voc(thing(), size=(1e101, 30)), ["'size/width'", "'1e+101' is not a size in pixels"]),
        (voc(thing())[:-5], ["line 1, column", "cut off"]),
        (voc(thing(name="&unknown;")), ["line 1", "undefined entity"]),
        ("", ["no element found"]),
        ("<html/>", ["<html>", "<annotation>"]),
        (voc(), ["class names"]),
    ],
)
def test_faults_name_file_place_and_field(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = write(tmp_path, content) / "Annotations" / "0.xml"
    with pytest.raises(DataError) as caught:
        read_voc(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_one_picture_in_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.xml, field 'filename': a\.png is annotated in .*0\.xml too"):
        read_voc(write(tmp_path, voc(thing()), voc(thing())))


def test_folders_without_annotations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no XML file"):
        read_voc(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_voc(tmp_path / "none")
    with pytest.raises(DataError, match="list of VOC files is empty"):
        read_voc([])


def test_listed_names_without_a_file_are_refused(tmp_path: Path) -> None:
    lists = write(tmp_path, voc(thing())) / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0 1\n\n")
    assert len(read_voc(tmp_path, split="train")) == 1
    (lists / "train.txt").write_text("0\n7\n")
    with pytest.raises(DataError, match=r"train\.txt: line 2: .*7\.xml is missing"):
        read_voc(tmp_path, split="train")
    (lists / "train.txt").write_text("x" * 300)
    with pytest.raises(DataError, match=r"train\.txt: line 1: .*x\.xml is missing"):
        read_voc(tmp_path, split="train")
