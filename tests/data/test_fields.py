from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from efficientdet.data.fields import (
    check_class_names,
    check_file_name,
    check_size,
    find_image_folder,
    measure,
    number_from_text,
    read_text,
)
from efficientdet.errors import DataError


def save_image(path: Path, width: int, height: int, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "train/a.jpg", "a..b.jpg", "...jpg", "2020-01-01T12:00.jpg"])
def test_ordinary_file_names_pass(name: str) -> None:
    check_file_name(name, "place")


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "a/../../b.jpg",
        "/etc/hostname",
        "..\\a.jpg",
        "C:\\a.jpg",
        "C:a.jpg",
        "\\\\host\\a.jpg",
        "a\0.jpg",
    ],
)
def test_file_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="file.json: image id 1, field 'file_name': .* leaves the image folder"):
        check_file_name(name, "file.json: image id 1")


def test_sizes_are_compared_after_exif_orientation(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.jpg", 40, 30, orientation=6)
    assert measure(path, "place") == (40, 30)
    check_size(path, (40, 30), measure(path, "place"), "place")


def test_boxes_of_the_unrotated_image_are_told_apart(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.jpg", 40, 30, orientation=6)
    with pytest.raises(DataError, match="place, fields 'width' and 'height'.*40x30.*30x40.*unrotated image"):
        check_size(path, (30, 40), measure(path, "place"), "place")


def test_swapped_sizes_without_orientation_are_not_blamed_on_exif(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.jpg", 40, 30)
    with pytest.raises(DataError, match="swapped") as caught:
        check_size(path, (40, 30), measure(path, "place"), "place")
    assert "EXIF" not in str(caught.value)


def test_a_file_that_is_no_image_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"x.json: image id 7: .*a\.jpg"):
        measure(path, "x.json: image id 7")


def test_image_folder_is_the_first_that_holds_an_image(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_image(tmp_path / "full" / "b.jpg", 4, 4)
    folders = [tmp_path / "none", tmp_path / "empty", tmp_path / "full"]
    assert find_image_folder(folders, ["a.jpg", "b.jpg"]) == tmp_path / "full"
    assert find_image_folder(folders, ["a.jpg"]) == tmp_path / "empty"
    assert find_image_folder(folders[:1], ["a.jpg"]) == tmp_path / "none"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class names"),
        (["a", False], "class name 1 is False"),
        (["a", " "], "class name 1 is ' '"),
        (["a", "b", "a"], "'a' is there twice, at 0 and 2"),
    ],
)
def test_class_names_must_be_distinct_texts(names: list[object], message: str) -> None:
    with pytest.raises(DataError, match=f"place: .*{message}"):
        check_class_names(names, "place")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1.0),
        ("-0.5", -0.5),
        ("1e-3", 0.001),
        ("nan", None),
        ("inf", None),
        ("1_0", None),
        ("x", None),
        ("", None),
    ],
)
def test_only_finite_numbers_are_numbers(text: str, number: float | None) -> None:
    assert number_from_text(text) == number


def test_text_is_read_with_and_without_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfx")
    assert read_text(path) == "x"
    path.write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="a.txt: not UTF-8 text at byte 2"):
        read_text(path)
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(DataError, match="folder"):
        read_text(tmp_path)
