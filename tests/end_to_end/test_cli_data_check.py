"""`efficientdet data check`: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("imagehash", reason="imagehash is missing (extra data)")
Command = Callable[..., Any]


@pytest.fixture
def broken(data: Path, tmp_path: Path) -> Path:
    """The tiny dataset, with an image of train in val too and a box outside its image."""
    folder = tmp_path / "broken"
    shutil.copytree(data, folder)
    shutil.copy(folder / "images" / "train1.png", folder / "images" / "val1.png")
    train, val = (json.loads((folder / f"{split}.json").read_text()) for split in ("train", "val"))
    val["images"][0] |= {name: train["images"][0][name] for name in ("width", "height")}
    train["annotations"][0]["bbox"] = [500, 10, 20, 20]
    for split, content in (("train", train), ("val", val)):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_a_sound_dataset_ends_with_0(command: Command, data: Path) -> None:
    done = command("data", "check", data)
    assert done.code == 0
    assert f"{data}: 0 errors" in done.out and "class-rare" in done.out and "anchors of lite0" in done.out


def test_an_error_ends_with_1_and_is_placed(command: Command, broken: Path) -> None:
    done = command("data", "check", broken)
    assert done.code == 1
    assert "box-outside" in done.out and "split-overlap" in done.out and "2 errors" in done.out


def test_the_least_severity_is_chosen(command: Command, data: Path) -> None:
    assert command("data", "check", data, "--fail-on", "warning").code == 1
    wrong = command("data", "check", data, "--fail-on", "disaster")
    assert wrong.code == 2 and "unknown severity 'disaster'" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--folds", "1"], "folds is 1"),
        (["--folds", "3", "--weights", "people"], "give one of them"),
        (["--model", "d99"], "unknown model 'd99'"),
        (["--image-size", "7"], "image_size is 7"),
    ],
)
def test_wrong_usage_ends_with_2(command: Command, data: Path, arguments: list[str], text: str) -> None:
    done = command("data", "check", data, *arguments)
    assert done.code == 2 and text in done.err


def test_no_dataset_ends_with_2(command: Command, tmp_path: Path) -> None:
    done = command("data", "check", tmp_path)
    assert done.code == 2 and "no annotations of the split" in done.err


def test_json_alone_is_printed_and_files_are_written(command: Command, broken: Path, tmp_path: Path) -> None:
    page, fixed = tmp_path / "out" / "check.html", tmp_path / "fixed"
    done = command("data", "check", broken, "--json", "--html", page, "--fix", fixed)
    assert done.code == 1
    content = json.loads(done.out)
    assert content["counts"]["error"] == 2
    outside = next(one for one in content["findings"] if one["code"] == "box-outside")
    assert (outside["split"], outside["image_id"], outside["annotation_ids"]) == ("train", 1, [1])
    assert outside["severity"] == "error" and outside["file"].endswith("train1.png")
    assert content["fixes"]["boxes left out: outside the image"] == 1
    assert "<!DOCTYPE html>" in page.read_text()
    again = command("data", "check", fixed)
    assert again.code == 0 and "0 errors" in again.out


def test_a_model_looks_for_label_errors(command: Command, data: Path, checkpoint: Path) -> None:
    done = command("data", "check", data, "--weights", checkpoint, "--json", "--no-decode")
    assert done.code == 0
    assert str(checkpoint) in json.loads(done.out)["labels_by"]


def test_anchors_are_compared_at_the_settings_that_are_given(command: Command, data: Path) -> None:
    arguments = ["--image-size", "128", "--anchor-scale", "2", "--aspects", "0.5,1,3", "--no-decode", "--json"]
    fit = json.loads(command("data", "check", data, *arguments).out)["anchors"]["fit"]
    assert (fit["image_size"], fit["anchor_scale"], fit["aspects"]) == (128, 2.0, [0.5, 1.0, 3.0])
