"""Files, folders, patterns and a pipe -> the pictures that are meant."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.errors import ImageError
from efficientdet.images.find import find_images, output_names, standard_input
from efficientdet.images.read import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", "sub/c.webp", "sub/deeper/d.jpeg", "sub/e.json", "odd[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


def names(folder: Path, *sources: str) -> list[str]:
    found, problems = find_images([source if source == "-" else str(folder / source) for source in sources])
    assert problems == []
    return [str(path) if path == "-" else Path(path).relative_to(folder).as_posix() for path in found]


def test_a_folder_means_its_pictures_of_all_levels_in_order(folder: Path) -> None:
    assert names(folder, ".") == ["a.png", "b.JPG", "odd[1].png", "sub/c.webp", "sub/deeper/d.jpeg"]


def test_a_file_is_taken_whatever_its_suffix(folder: Path) -> None:
    assert names(folder, "notes.txt", "a.png") == ["notes.txt", "a.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png", "odd[1].png"]),
        ("*.[jJ][pP]*", ["b.JPG"]),  # not the folder whose name ends so
        ("**/*.jpeg", ["sub/deeper/d.jpeg"]),
        ("sub/?.*", ["sub/c.webp", "sub/e.json"]),
        ("odd[1].png", ["odd[1].png"]),  # a name before it is a pattern
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(folder, pattern) == expected


def test_each_is_listed_once_in_the_order_of_the_sources(folder: Path) -> None:
    assert names(folder, "sub", "a.png", "-", "*.png", "./a.png", "-") == [
        "sub/c.webp", "sub/deeper/d.jpeg", "a.png", "-", "odd[1].png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("none.jpg", "no such file"),
        ("*.gif", "matches it as a pattern"),
        ("folder.jpg", "no image in this folder"),
    ],
)
def test_a_source_that_matches_nothing_is_named(folder: Path, source: str, says: str) -> None:
    with pytest.raises(ImageError) as caught:
        find_images([str(folder / "a.png"), str(folder / source)])
    assert str(folder / source) in str(caught.value) and says in str(caught.value)


def test_no_sources_no_pictures() -> None:
    assert find_images([]) == ([], [])


@pytest.mark.parametrize("suffix", [".jfif", ".bw", ".dds", ".j2k", ".heic", ".HEIF", ".qoi", ".avif"])
def test_a_folder_means_every_format_that_is_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"image{suffix}").touch()
    assert names(tmp_path, ".") == [f"image{suffix}"]


def test_what_cannot_be_searched_is_named(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to(folder / "nothing.jpg")
    (folder / "sub" / "again").symlink_to(folder)
    found, problems = find_images([str(folder)])
    assert [Path(path).name for path in found] == ["a.png", "b.JPG", "odd[1].png", "c.webp", "d.jpeg"]
    assert len(problems) == 2
    assert any("gone.jpg: a link that leads nowhere" in str(problem) for problem in problems)
    assert any("again: a link to a folder that was searched already" in str(problem) for problem in problems)


def test_a_link_to_another_folder_is_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "z.png").touch()
    (folder / "linked").symlink_to(other)
    assert "linked/z.png" in names(folder, ".")


def test_a_folder_with_two_names_is_searched_once(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "sub")
    (folder / "zlink").symlink_to(folder / "sub")
    found, problems = find_images([str(folder)])
    assert sorted(Path(path).name for path in found) == ["a.png", "b.JPG", "c.webp", "d.jpeg", "odd[1].png"]
    assert len(problems) == 2


def test_a_folder_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refuse)
    found, problems = find_images([str(folder)])
    assert len(found) == 3 and len(problems) == 1 and "sub: Permission denied" in str(problems[0])


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\nb"])
def test_a_name_that_cannot_be_is_an_error_of_one_line(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        find_images([name])
    assert "\n" not in str(caught.value)


# ---- names of the annotated copies
def test_copies_keep_the_stem_and_are_numbered_where_two_would_collide() -> None:
    pictures: list[Path | str] = [Path("x/a.png"), Path("y/a.jpg"), "-", Path("b.c.webp"), Path("A.bmp")]
    assert output_names(pictures) == ["a.jpg", "a-2.jpg", "stdin.jpg", "b.c.jpg", "A-3.jpg"]


def test_a_number_that_is_taken_is_skipped() -> None:
    pictures: list[Path | str] = [Path(name) for name in ("a.png", "a-2.png", "x/a.png", "y/a-2.png")]
    assert output_names(pictures) == ["a.jpg", "a-2.jpg", "a-3.jpg", "a-2-2.jpg"]


@given(st.lists(st.sampled_from(["a.png", "a-2.png", "a-2-2.jpg", "A.jpg", "x/a.png", "-", "stdin.png", ".jpg"])))
def test_no_two_copies_share_a_name(sources: list[str]) -> None:
    found = output_names([source if source == "-" else Path(source) for source in sources])
    assert len(found) == len(sources)
    assert len({name.lower() for name in found}) == len(found)
    assert all(name.endswith(".jpg") and os.sep not in name for name in found)


def test_a_long_stem_is_cut_to_a_name_that_can_be() -> None:
    first, second = output_names([Path("é" * 126 + ".png"), Path("é" * 126 + ".gif")])
    assert first != second
    assert max(len(os.fsencode(name)) for name in (first, second)) <= 255


# ---- the pipe
def test_standard_input_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff\xd8picture")))
    assert standard_input().read() == b"\xff\xd8picture"


def test_an_empty_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(ImageError, match="standard input is empty"):
        read(standard_input())
