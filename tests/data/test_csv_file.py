"""CSV: rows become records, and every fault names line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from efficientdet.data.csv_file import read_csv, splits_of
from efficientdet.data.read_split import read_split, read_splits
from efficientdet.data.records import EVERY_CLASS, IGNORED_REGIONS, IMAGES_SKIPPED
from efficientdet.errors import DataError, MissingSplitError

HEAD = "image,xmin,ymin,xmax,ymax,class"


def write(folder: Path, text: str, name: str = "boxes.csv", images: str = "images") -> Path:
    (folder / images).mkdir(parents=True, exist_ok=True)
    for image in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(folder / images / image)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_rows_become_boxes(tmp_path: Path) -> None:
    text = f'{HEAD}\n a.png ,1,2,20.5,30,dog\nb.png,,,,,\n\na.png,0,0,99,10,"cat, big"\n'
    records = read_csv(write(tmp_path, text))
    assert records.class_names == ("cat, big", "dog") and records.category_ids == (0, 1)
    first, second = records.images
    assert first.boxes_xyxy.tolist() == [[1, 2, 20.5, 30], [0, 0, 40, 10]]
    assert first.labels.tolist() == [1, 0] and (first.image_id, second.image_id) == (1, 2)
    assert second.is_negative and records.counts["boxes clipped"] == 1


def test_columns_stand_in_any_order_under_either_name(tmp_path: Path) -> None:
    text = "Class,Filename,width,height,xmin,ymin,xmax,ymax\ndog,a.png,40,30,1,2,20,30\n"
    assert read_csv(write(tmp_path, text)).images[0].boxes_xyxy.tolist() == [[1, 2, 20, 30]]


def test_ignored_regions_need_no_class(tmp_path: Path) -> None:
    text = f"{HEAD},ignored\na.png,1,2,20,30,,1\na.png,1,2,20,30,dog,1\na.png,1,2,20,30,dog,0\na.png,1,2,20,30,dog,\n"
    records = read_csv(write(tmp_path, text))
    assert records.images[0].labels.tolist() == [EVERY_CLASS, 0, 0, 0]
    assert records.images[0].is_ignored.tolist() == [True, True, False, False]
    assert records.counts[IGNORED_REGIONS] == 2


def test_splits_of_one_file_share_its_classes(tmp_path: Path) -> None:
    text = f"{HEAD},split\na.png,1,2,20,30,dog,train\nb.png,1,2,20,30,cat,valid\n"
    path = write(tmp_path, text, "annotations.csv")
    assert splits_of(path) == {"train", "valid"}
    for data in (path, tmp_path):
        train, val = read_split(data, "train"), read_split(data, "val")
        assert train.class_names == val.class_names == ("cat", "dog")
        assert [image.file_name for image in (*train.images, *val.images)] == ["a.png", "b.png"]
        assert set(read_splits(data)) == {"train", "val"}
        with pytest.raises(MissingSplitError):
            read_split(data, "test")


def test_files_of_a_folder_share_their_classes(tmp_path: Path) -> None:
    write(tmp_path, f"{HEAD}\na.png,1,2,20,30,dog\n", "train.csv")
    write(tmp_path, f"{HEAD}\nb.png,1,2,20,30,cat\n", "val.csv")
    assert read_split(tmp_path, "train").class_names == read_split(tmp_path, "val").class_names == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("dog\ncat\nemu\n")
    assert read_split(tmp_path, "val").class_names == ("dog", "cat", "emu")
    assert read_split(tmp_path, "val").images[0].labels.tolist() == [1]


def test_a_file_without_splits_is_trained_on_alone(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}\na.png,1,2,20,30,dog\n", "annotations.csv")
    assert set(read_splits(tmp_path)) == set(read_splits(path)) == {"train"}
    with pytest.raises(MissingSplitError):
        read_split(tmp_path, "val")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["line 1", "lacks image, xmin, ymin, xmax, ymax, class"]),
        ("image,xmin,ymin,xmax,class\n", ["line 1", "lacks ymax;"]),
        (f"{HEAD}\na.png,1,2,3,4\n", ["line 2", "5 fields, but the header has 6"]),
        (f"{HEAD}\na.png,1,2,30,20,x\n,1,2,3,4,x\n", ["line 3", "'image'", "empty"]),
        (f"{HEAD}\na.png,1,2,3,4,\n", ["line 2", "'class'", "empty"]),
        (f"{HEAD}\na.png,1,,3,4,x\n", ["line 2", "'ymin'", "empty"]),
        (f"{HEAD}\na.png,1,2,nan,4,x\n", ["line 2", "'xmax'", "'nan'"]),
        (f"{HEAD}\n\"a\nb.png\",1,2,3,4,x\na.png,q,2,3,4,x\n", ["line 4", "'xmin'", "'q'"]),
        (f"{HEAD},ignored\na.png,1,2,3,4,x,yes\n", ["line 2", "'ignored'", "'yes'"]),
        (f"{HEAD}\n../a.png,1,2,3,4,x\n", ["line 2", "'image'", "leaves the image folder"]),
        (f"{HEAD}\nc.png,1,2,3,4,x\n", ["line 2", "'c.png' is not in"]),
        (f"{HEAD}\na.png,,,,,\n", ["no class names"]),
        (f"{HEAD}\n\"a.png,1,2,3,4,x\n", ["line 2", "1 fields"]),
    ],
)  # fmt: skip
def test_faults_name_line_and_field(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_csv(path)
    for part in [str(tmp_path), *parts]:
        assert part in str(caught.value)


def test_a_class_beyond_those_given_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}\na.png,1,2,20,30,dgo\n")
    with pytest.raises(DataError, match="line 2, field 'class': unknown class 'dgo'; did you mean 'dog'"):
        read_csv(path, class_names=["dog", "cat"])


def test_missing_images_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}\na.png,1,2,20,30,dog\nc.png,1,2,20,30,dog\n")
    records = read_csv(path, skip_missing=True)
    assert len(records) == 1 and records.counts[IMAGES_SKIPPED] == 1
