"""The cache folder: where it is, files made once, and what happens when they or the folder are damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efficientdet import cache
from efficientdet.cache import Kept, cache_dir, cache_folder, cached, is_sealed, may_be_written, seal, sealing
from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.weights.registry import RELEASED


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def is_right(path: Path) -> bool:
    return path.read_text() == "right"


def make(path: Path) -> None:
    path.write_text("right")


def refuse(path: Path) -> None:
    raise AssertionError(f"{path} is made although it is there")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EFFICIENTDET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "efficientdet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "efficientdet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "efficientdet"
    monkeypatch.setenv("EFFICIENTDET_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"


def test_without_a_home_folder_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(SettingError, match="no folder for the cache .*; set EFFICIENTDET_CACHE to one"):
        cache_dir()


def test_a_file_is_made_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cached("engines/a", is_right, make) == folder / "engines" / "a"
    assert cached("engines/a", is_right, refuse) == folder / "engines" / "a"
    assert capsys.readouterr().err == ""


def test_a_damaged_file_is_made_again_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached("a", is_right, make).write_text("wrong")
    assert is_right(cached("a", is_right, make))
    assert capsys.readouterr().err == f"efficientdet: {folder / 'a'} is damaged and is made again\n"


PROGRAM = """
import sys
from pathlib import Path
from efficientdet.cache import cache_folder, cached
make = lambda path: path.write_text("right")
is_right = lambda path: path.read_text() == "right"
first = cached("engines/a", is_right, make)
assert cached("engines/a", is_right, None) == first
assert is_right(first) and cache_folder("engines") == first.parent
print(first)
"""


def test_a_folder_that_cannot_be_written_is_worked_around_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "cache"
    environment = {"EFFICIENTDET_CACHE": str(place), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"efficientdet: the cache folder {place} cannot be written (")
    assert done.stderr.count("\n") == 1 and "Set EFFICIENTDET_CACHE" in done.stderr
    assert not Path(done.stdout.strip()).exists()  # the temporary folder went away with the process


def test_a_read_only_cache_serves_what_it_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached("a", is_right, make)
    cached("b", is_right, make).write_text("wrong")

    def fail(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache.tempfile, "TemporaryFile", fail)
    cache._temporary_folder.cache_clear()
    assert cached("a", is_right, refuse) == folder / "a"
    elsewhere = cached("b", is_right, make)
    assert is_right(elsewhere) and folder not in elsewhere.parents
    assert cached("b", is_right, refuse) == elsewhere
    assert (folder / "b").read_text() == "wrong"
    assert "cannot be written (Read-only file system)" in capsys.readouterr().err
    cache._temporary_folder.cache_clear()


def test_whether_a_folder_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert may_be_written(tmp_path) and may_be_written(tmp_path / "a" / "b")
    assert not may_be_written(tmp_path / "file") and not may_be_written(tmp_path / "file" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    if Path("/proc/self").exists():
        assert not may_be_written(Path("/proc/no/such"))  # root may not either


def test_files_of_a_library_are_removed_where_they_are_damaged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "unsealed.blob").write_bytes(b"left by a process that was killed")
    (folder / "other").write_bytes(b"")
    with sealing(folder, "*.blob"):
        assert [path.name for path in folder.iterdir()] == ["other"]
        (folder / "a.blob").write_bytes(b"whole")
        (folder / "a.blob").chmod(0o400)
    assert (folder / "a.blob").stat().st_mode & 0o777 == folder.stat().st_mode & 0o666
    with sealing(folder, "*.blob"):
        assert (folder / "a.blob").read_bytes() == b"whole"
    assert capsys.readouterr().err == ""
    (folder / "a.blob").write_bytes(b"damaged")
    with sealing(folder, "*.blob"):
        assert [path.name for path in folder.iterdir()] == ["other"]
    assert capsys.readouterr().err == f"efficientdet: {folder / 'a.blob'} is damaged and is made again\n"


def test_a_seal_tells_any_change(folder: Path) -> None:
    path = cache_folder("engines") / "a.onnx"
    assert not is_sealed(path)
    path.write_bytes(bytes(1000))
    assert not is_sealed(path)
    seal(path)
    assert is_sealed(path)
    path.write_bytes(bytes(999) + b"\1")
    assert not is_sealed(path)
    path.write_bytes(bytes(1000))
    path.with_name("a.onnx.sha256").write_bytes(b"\xff")
    assert not is_sealed(path)


# Of the user, in a folder that holds both.
OWN = ("thesis.txt", "best.safetensors", "theirs.pth", "datasets/cats/1.jpg")


def fill(folder: Path) -> None:
    made = (
        "engines/a.onnx", "engines/openvino/a/b.blob", "datasets/0123456789abcdef01234567/1.jpg",
        "d0-symmetric.safetensors", RELEASED["d0"].file,
    )  # fmt: skip
    for name in made + OWN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(200_000))


def test_what_it_holds_and_clearing_it(folder: Path) -> None:
    assert [row.files for row in cache.kept()] == [0, 0, 0, 0]
    fill(folder)
    expected = [Kept("engines", 2, 0.4), Kept("weights", 2, 0.4), Kept("datasets", 1, 0.2), Kept("libraries", 0, 0.0)]
    assert cache.kept() == expected
    with pytest.raises(UnknownNameError, match="kind of file in the cache 'engine'"):
        cache.clear(["weights", "engine"])
    assert cache.clear(["engines"]) == expected[:1]
    assert [row.files for row in cache.kept()] == [0, 2, 1, 0]
    cache.clear()
    assert [row.files for row in cache.kept()] == [0, 0, 0, 0]
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == set(OWN)


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights_are_cleared(name: str, folder: Path) -> None:
    folder.mkdir()
    for file in (f"{name}.safetensors", RELEASED[name].file):
        (folder / file).write_bytes(b"")
    cache.clear(["weights"])
    assert not list(folder.iterdir())


def test_clearing_leaves_what_a_link_leads_to(folder: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other")
    folder.mkdir()
    (folder / "engines").symlink_to(tmp_path / "other" / "engines")
    cache.clear()
    assert not (folder / "engines").exists() and (tmp_path / "other" / "engines" / "a.onnx").is_file()


def make_sealed(path: Path) -> None:
    path.write_bytes(bytes(100))
    seal(path)


def test_engines_that_were_not_used_for_longest_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_ENGINES", 300)
    for age, name in enumerate(("c", "b", "a")):
        os.utime(cached(f"engines/{name}", is_sealed, make_sealed), (age, age))
    assert cached("engines/b", is_sealed, refuse).is_file()
    os.utime(folder / "engines" / "b", (9, 1))  # read later than all others, as file systems note it, or not
    cached("engines/d", is_sealed, make_sealed)
    assert sorted(path.name for path in (folder / "engines").glob("?")) == ["a", "b", "d"]
    assert len(list((folder / "engines").iterdir())) == 6  # with their seals
    with sealing(cache_folder("engines", "openvino"), "*.blob"):
        (folder / "engines" / "openvino" / "e.blob").write_bytes(bytes(100))
    assert sorted(path.stem for path in (folder / "engines").rglob("?.blob")) == ["e"]
    assert len([path for path in (folder / "engines").rglob("*") if path.suffix != ".sha256" and path.is_file()]) == 3


def test_the_last_engine_stays_however_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_ENGINES", 10)
    path = cached("engines/large", is_sealed, make_sealed)
    assert path.is_file()
