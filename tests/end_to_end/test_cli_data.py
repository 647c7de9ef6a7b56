"""`efficientdet data`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def data(shapes: ModuleType, tmp_path: Path) -> Path:
    folder: Path = shapes.write_shapes(tmp_path / "in", {"train": 4, "val": 2})
    return folder


def test_convert_prints_what_is_lost(data: Path, command: Command, tmp_path: Path) -> None:
    code, out, err = command("data", "convert", data, tmp_path / "yolo", "--to", "yolo")
    assert (code, err) == (0, "")
    for part in ("yolo, 2 classes", "train", "val", "lost or changed", "category ids"):
        assert part in " ".join(out.split())  # a long path wraps the line
    code, out, _ = command("data", "convert", data, tmp_path / "voc", "--to", "voc", "--json")
    report = json.loads(out)
    assert code == 0 and report["format"] == "voc" and report["splits"]["train"]["images"] == 4
    assert report["lost"] == {"category ids": 2}


def test_what_exists_is_kept_and_said_so(data: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code, out, err = command("data", "convert", data, tmp_path / "out", "--to", "coco")
    assert (code, out) == (2, "") and "out exists" in err and "--overwrite" in err
    assert command("data", "convert", data, tmp_path / "out", "--to", "coco", "--overwrite")[0] == 0
    code, _, err = command("data", "convert", data, tmp_path / "other", "--to", "cocoo")
    assert code == 2 and "did you mean 'coco'" in err and not (tmp_path / "other").exists()


def test_the_other_commands_take_their_settings(data: Path, command: Command, tmp_path: Path) -> None:
    for words in (
        ("split", data, tmp_path / "split", "--val", "0.5", "--to", "csv"),
        ("subset", data, tmp_path / "subset", "--classes", "disc", "--keep-negatives"),
        ("merge", data, tmp_path / "subset", "--out", tmp_path / "both"),
        ("tile", data, tmp_path / "tiles", "--size", "48", "--overlap", "0.1", "--smallest-share", "0.5"),
    ):
        code, out, err = command("data", *words, "--json")
        assert (code, err) == (0, ""), words
        report = json.loads(out)
        assert Path(report["folder"]).is_dir() and report["splits"], words
    assert json.loads((tmp_path / "tiles" / "tiles.json").read_text())
