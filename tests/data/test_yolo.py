from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image

from efficientdet.data.records import (
    BOXES_CLIPPED,
    BOXES_DEGENERATE,
    BOXES_OF_SKIPPED,
    EVERY_CLASS,
    IGNORED_REGIONS,
    IMAGES_SKIPPED,
    IMAGES_WITHOUT_BOXES,
)
from efficientdet.data.yolo import IMAGES_WITHOUT_LABEL_FILE, _parse, read_labels, read_yolo
from efficientdet.errors import DataError, MissingExtraError, MissingSplitError

REJECTED = {
    "yolo_class_out_of_range.txt": ["line 1", "field 1", "class 7 of 2"],
    "yolo_bad_number.txt": ["line 1", "field 3", "'x'"],
    "yolo_pixels_instead_of_fractions.txt": ["line 1", "field 2", "80", "pixels"],
}


def test_every_file_of_the_manifest_is_tested_here(shared_data: Path) -> None:
    manifest = json.loads((shared_data / "bad_annotations" / "manifest.json").read_text())
    files = {name: entry["expect"] for name, entry in manifest.items() if name.endswith(".txt")}
    assert files == dict.fromkeys(REJECTED, "reject") | {"yolo_empty.txt": "accept"}


def as_data_set(shared_data: Path, name: str, folder: Path) -> Path:
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    source = shared_data / "bad_annotations"
    shutil.copyfile(source / "images" / "a.jpg", folder / "images" / "train" / "a.jpg")
    shutil.copyfile(source / name, folder / "labels" / "train" / "a.txt")
    return folder


@pytest.mark.parametrize("name", REJECTED)
def test_bad_files_are_refused_by_line_and_field(shared_data: Path, tmp_path: Path, name: str) -> None:
    root = as_data_set(shared_data, name, tmp_path)
    with pytest.raises(DataError) as caught:
        read_yolo(root, class_names=["x", "y"])
    for part in [str(root / "labels" / "train" / "a.txt"), *REJECTED[name]]:
        assert part in str(caught.value)


def test_an_empty_file_is_a_negative(shared_data: Path, tmp_path: Path) -> None:
    records = read_yolo(as_data_set(shared_data, "yolo_empty.txt", tmp_path), class_names=["x", "y"])
    assert records.training_boxes == 0
    assert records.images[0].is_negative
    assert records.counts[IMAGES_WITHOUT_BOXES] == 1
    assert records.counts[IMAGES_WITHOUT_LABEL_FILE] == 0


def write(root: Path, images: str = "images/train", labels: str = "labels/train", **files: str) -> Path:
    """A data set of the pictures a.png, b.png (40x30) and the given label files."""
    for folder in (images, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.PNG"):
        Image.new("RGB", (40, 30)).save(root / images / name)
    for name, text in files.items():
        (root / labels / f"{name}.txt").write_text(text)
    return root


def test_boxes_are_scaled_to_pixels_and_cleaned(tmp_path: Path) -> None:
    lines = "1 0.5 0.5 0.5 0.2\n\n0 0.1 0.5 0.4 1\n0 0.5 0.5 0 0.1\n0 0.5 0.5 -0.2 0.1\n"
    records = read_yolo(write(tmp_path, a=lines), class_names=["x", "y"])
    first, second = records.images
    assert_allclose(first.boxes_xyxy, [[10, 12, 30, 18], [0, 0, 12, 30]], rtol=1e-6)
    assert first.labels.tolist() == [1, 0]
    assert first.annotation_ids == ["1/1", "1/3"]
    assert second.is_negative
    assert records.category_ids == (0, 1)
    assert records.counts[BOXES_CLIPPED] == 1
    assert records.counts[BOXES_DEGENERATE] == 2
    assert records.counts[IMAGES_WITHOUT_BOXES] == 1
    assert records.counts[IMAGES_WITHOUT_LABEL_FILE] == 1


@pytest.mark.parametrize(
    ("images", "labels", "split"),
    [
        ("images/train", "labels/train", "train"),
        ("train/images", "train/labels", "train"),
        ("valid/images", "valid/labels", "val"),
        ("images/val", "labels/val", "valid"),
        ("images/extra", "labels/extra", "extra"),
    ],
)
def test_usual_layouts(tmp_path: Path, images: str, labels: str, split: str) -> None:
    records = read_yolo(write(tmp_path, images, labels, a="0 .5 .5 .1 .1"), split, ["x"])
    assert records.training_boxes == 1
    assert records.images[0].path == tmp_path / images / "a.png"


def test_folders_below_a_split_are_read(tmp_path: Path) -> None:
    write(tmp_path, "images/train/day", "labels/train/day", a="0 .5 .5 .1 .1")
    assert read_yolo(tmp_path, class_names=["x"]).training_boxes == 1


@pytest.mark.parametrize("entry", ["../pictures/images", "pictures/images", "./pictures/images/"])
def test_the_folder_of_data_yaml_comes_first(tmp_path: Path, entry: str) -> None:
    write(tmp_path, "pictures/images", "pictures/labels", a="0 .5 .5 .1 .1")
    (tmp_path / "data.yaml").write_text(f"train: {entry}\nnames: [x]\n")
    assert read_yolo(tmp_path).training_boxes == 1
    assert read_yolo(tmp_path / "data.yaml").class_names == ("x",)


def test_nothing_outside_the_data_set_is_read(tmp_path: Path) -> None:
    write(tmp_path / "other", a="0 .5 .5 .1 .1")
    (tmp_path / "set").mkdir()
    for entry, fault in (
        ("../other/images/train", "there is no folder"), (tmp_path / "other" / "images" / "train", "is not below"),
        ("/", "is not below"), ("..", "is not below"), (f"{tmp_path}/set/../other/images", "is not below"),
    ):  # fmt: skip
        (tmp_path / "set" / "data.yaml").write_text(f"train: {entry}\nnames: [x]\n")
        with pytest.raises(DataError, match=rf"data\.yaml, field 'train': .*{fault}"):
            read_yolo(tmp_path / "set")


@pytest.mark.parametrize("entry", ["images/day", "[images/train]", "train.txt", "x" * 300, "images/" + "x" * 300, "5"])
def test_an_entry_of_data_yaml_that_is_no_folder_is_an_error_and_never_another_folder(
    tmp_path: Path, entry: str
) -> None:
    write(tmp_path, a="0 .5 .5 .1 .1")
    (tmp_path / "train.txt").write_text("images/train/a.png\n")
    (tmp_path / "data.yaml").write_text(f"train: {entry}\nnames: [x]\n")
    with pytest.raises(DataError, match=r"data\.yaml, field 'train': ") as caught:
        read_yolo(tmp_path)
    assert not isinstance(caught.value, MissingSplitError)
    assert len(str(caught.value)) < 600 + 2 * len(str(tmp_path))


def test_the_entries_of_data_yaml_are_relative_to_its_path(tmp_path: Path) -> None:
    write(tmp_path / "set", "images/train", "labels/train", a="0 .5 .5 .1 .1")
    write(tmp_path / "set" / "part", "images/train", "labels/train", a="0 .5 .5 .1 .1\n0 .5 .5 .2 .2")
    config = tmp_path / "set" / "data.yaml"
    places = {".": 1, "../datasets/set": 1, "/elsewhere/set": 1, f"{tmp_path}/set": 1, "part": 2, "./part/": 2}
    for path, boxes in places.items():
        for entry in ("train: images/train\n", ""):
            config.write_text(f"path: {path}\n{entry}names: [x]\n")
            assert read_yolo(config).training_boxes == boxes


def test_an_empty_entry_is_none_and_an_absolute_one_may_lie_in_the_data_set(tmp_path: Path) -> None:
    write(tmp_path, a="0 .5 .5 .1 .1")
    (tmp_path / "data.yaml").write_text("train:\nnames: [x]\n")
    assert read_yolo(tmp_path).training_boxes == 1
    (tmp_path / "data.yaml").write_text(f"train: {tmp_path / 'images' / 'train'}\nnames: [x]\n")
    assert read_yolo(tmp_path).training_boxes == 1


@pytest.mark.parametrize("suffix", ["jfif", "bw", "dds", "j2k", "tga"])
def test_images_of_every_format_that_is_read_are_found(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, c="0 .5 .5 .1 .1")
    mode = "L" if suffix == "bw" else "RGB"
    Image.new(mode, (40, 30)).save(tmp_path / "images" / "train" / f"c.{suffix}")
    records = read_yolo(tmp_path, class_names=["x"])
    assert [record.path.name for record in records.images] == ["a.png", "b.PNG", f"c.{suffix}"]
    assert records.training_boxes == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_any_name_that_a_file_has_is_read(tmp_path: Path) -> None:
    names = ["a:1", "b\\..\\c"]
    write(tmp_path, **dict.fromkeys(names, "0 .5 .5 .1 .1"))
    for name in names:
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / "train" / f"{name}.png")
    assert read_yolo(tmp_path, class_names=["x"]).training_boxes == 2


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "images" / "train" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: a link that leads nowhere.*skip_missing"):
        read_yolo(tmp_path, class_names=["x"])
    assert len(read_yolo(tmp_path, class_names=["x"], skip_missing=True)) == 2


@pytest.mark.parametrize("names", ["[x, y]", "{0: x, 1: y}", "{1: y, 0: x}", "\n  - x\n  - y"])
def test_names_of_data_yaml(tmp_path: Path, names: str) -> None:
    write(tmp_path, a="1 .5 .5 .1 .1")
    (tmp_path / "data.yaml").write_text(f"nc: 2\nnames: {names}\n")
    records = read_yolo(tmp_path)
    assert records.class_names == ("x", "y")
    assert records.images[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("names: [x", ["not valid YAML", "line"]),
        ("- x", ["names"]),
        ("", ["names"]),
        ("nc: 2", ["'names'", "missing"]),
        ("nc: 3\nnames: [x, y]", ["'nc'", "3", "2 names"]),
        ("names: {1: x, 2: y}", ["'names'", "1, 2", "0 to 1"]),
        ("names: [yes, no]", ["'names'", "class name 0 is True"]),
        ("names: [x, x]", ["'names'", "twice"]),
        ("names: []", ["'names'", "no class names"]),
        ("names: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("names: [x]\nnames: [y]", ["not valid YAML", "'names' is there twice", "line 2"]),
        ("names: &a [x]\ntrain: *a", ["not valid YAML", "aliases", "line 2"]),
        ("names: " + "[" * 3000 + "]" * 3000, ["not valid YAML"]),
        ("names: [x]\nextra: !!timestamp x", ["not valid YAML"]),
        ("names: [x]\nextra: !!bool perhaps", ["not valid YAML"]),
        ("names: [x]\nextra: !!float x", ["not valid YAML"]),
        ("names: [x]\nextra: !!binary é", ["not valid YAML"]),
        ("names: [x]\n? [a, b]\n: 1\n? {c: 1}\n: 2", ["not valid YAML"]),
        ("names: [x]\nextra: " + "9" * 5000, ["not valid YAML"]),
        ("names: [" + "x" * 999 + ", " + "x" * 999 + "]", ["'names'", "twice"]),
        ("names: [" + "x" * 5000 + "]", ["'names'", "class name 0 has 5,000 characters"]),
        ("names: [x]\n" + "# x" * 400_000, ["1,200,011 characters; at most 1,000,000"]),
        ("path: /nowhere\nnames: [x]", ["'path'", "neither"]),
        ("path: ../other\nnames: [x]", ["'path'", "neither"]),
        ("path: images/..\nnames: [x]", ["'path'", "neither"]),
        ("path: [x]\nnames: [x]", ["'path'", "not a folder"]),
    ],
)
def test_faults_of_data_yaml_name_file_and_field(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path) / "data.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_yolo(tmp_path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 800 + len(str(path))


def test_aliases_that_grow_without_end_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (write(tmp_path) / "data.yaml").write_text("\n".join([*lines, "names: *a11"]))
    with pytest.raises(DataError, match="aliases"):
        read_yolo(tmp_path)


def test_classes_txt_gives_the_names(tmp_path: Path) -> None:
    write(tmp_path, classes="x\ny\n")
    (tmp_path / "labels" / "train" / "classes.txt").rename(tmp_path / "classes.txt")
    assert read_yolo(tmp_path).class_names == ("x", "y")


def test_without_names_the_way_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither data.yaml nor classes.txt"):
        read_yolo(write(tmp_path))


def test_missing_pyyaml_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write(tmp_path) / "data.yaml").write_text("names: [x]")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"efficientdet\[train\]"):
        read_yolo(tmp_path)


def test_labels_without_a_picture_are_refused_or_skipped(tmp_path: Path) -> None:
    write(tmp_path, a="0 .5 .5 .1 .1", gone="0 .5 .5 .1 .1\n0 .5 .5 .2 .2", classes="x")
    with pytest.raises(DataError, match=r"gone\.txt: the image 'gone"):
        read_yolo(tmp_path, class_names=["x"])
    records = read_yolo(tmp_path, class_names=["x"], skip_missing=True)
    assert records.training_boxes == 1
    assert records.counts[IMAGES_SKIPPED] == 1
    assert records.counts[BOXES_OF_SKIPPED] == 2


def test_a_split_without_labels_folder_is_not_taken_for_negatives(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "labels" / "train").rmdir()
    with pytest.raises(DataError, match="labels.train: there is no such folder"):
        read_yolo(tmp_path, class_names=["x"])


def test_a_missing_split_names_the_folders_tried(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'val'; looked for .*images/val.*valid/images"):
        read_yolo(write(tmp_path), "val", ["x"])


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("0 .5 .5 .1", ["4 fields", "five"]),
        ("0 .5 .5 .1 .1 .9", ["6 fields", "score"]),
        ("0 .1 .1 .2 .1 .2 .2 .1 .2", ["9 fields", "polygon"]),
        ("x .5 .5 .1 .1", ["field 1 (class)", "'x'"]),
        ("-1 .5 .5 .1 .1", ["field 1 (class)", "'-1'"]),
        ("0.0 .5 .5 .1 .1", ["field 1 (class)", "'0.0'"]),
        ("2 .5 .5 .1 .1", ["field 1 (class)", "class 2 of 2", "0 to 1"]),
        ("0 nan .5 .1 .1", ["field 2 (x center)", "'nan'"]),
        ("0 .5 -0.2 .1 .1", ["field 3 (y center)", "-0.2 is below 0"]),
        ("0 .5 .5 inf .1", ["field 4 (width)", "'inf'"]),
        ("0 .5 .5 .1 1.5", ["field 5 (height)", "1.5 is over 1", "pixels"]),
    ],
)
def test_faults_name_file_line_and_field(tmp_path: Path, line: str, parts: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"1 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_labels(path, 2)
    for part in [str(path), "line 2", *parts]:
        assert part in str(caught.value)


fractions = st.floats(0, 1)


@given(st.integers(0, 79), st.tuples(fractions, fractions, fractions, fractions))
def test_written_lines_are_read_back(label: int, xywh: tuple[float, float, float, float]) -> None:
    line = " ".join(map(repr, (label, *xywh)))
    assert _parse(line.split(), "place", 80) == (label, xywh)


@given(st.lists(st.text(min_size=1, max_size=6).filter(lambda text: not text.isspace()), max_size=7))
def test_any_text_is_read_or_refused(texts: list[Any]) -> None:
    try:
        label, xywh = _parse(texts, "place", 3)
    except DataError as error:
        assert str(error).startswith("place")
    else:
        assert label in range(3) and len(xywh) == 4


def test_ignored_regions_stand_beside_the_labels(tmp_path: Path) -> None:
    root = write(tmp_path, a="1 0.5 0.5 0.5 0.2\n")
    (root / "ignored" / "train").mkdir(parents=True)
    (root / "ignored" / "train" / "a.txt").write_text("-1 0.25 0.5 0.5 1\n0 0.75 0.5 0.1 0.2\n")
    (root / "ignored" / "train" / "b.txt").write_text("-1 0.25 0.5 0.5 1\n")
    records = read_yolo(root, class_names=["x", "y"])
    first, second = records.images
    assert first.labels.tolist() == [1, EVERY_CLASS, 0]
    assert first.is_ignored.tolist() == [False, True, True]
    assert_allclose(first.boxes_xyxy[1:], [[0, 0, 20, 30], [28, 12, 32, 18]], rtol=1e-6)
    assert second.is_negative and second.is_ignored.tolist() == [True]
    assert records.counts[IGNORED_REGIONS] == 3 and records.training_boxes == 1
    with pytest.raises(DataError, match="field 1 .class.: '-1' is not a class number"):
        read_yolo(write(tmp_path / "other", a="-1 0.5 0.5 0.5 0.2\n"), class_names=["x", "y"])
