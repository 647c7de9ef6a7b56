"""The folder of a run: claimed by one run alone, its settings and its saved state checked when they are read."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from efficientdet.data.coco import read_coco
from efficientdet.errors import SettingError
from efficientdet.training.run_folder import (
    CONFIG_FILE,
    LOCK_FILE,
    RESUME_FILE,
    SPARE_FILE,
    claim_folder,
    find_state,
    fingerprint,
)

# Waits for a line, so that all processes claim at the same moment.
CLAIMS = """
import sys
from efficientdet.errors import SettingError
from efficientdet.training.run_folder import claim_folder
print("ready", flush=True)
sys.stdin.readline()
try:
    with claim_folder(sys.argv[1] or None, resume=False) as folder:
        print(folder)
except SettingError as error:
    print(error)
"""


def _claim_at_once(out: str, count: int, folder: Path) -> list[str]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMS, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0].strip() for process in processes]


def test_runs_started_together_never_share_a_folder(tmp_path: Path) -> None:
    found = _claim_at_once("", 3, tmp_path)
    assert sorted(found) == [str(Path("runs", str(number))) for number in (1, 2, 3)]
    found = _claim_at_once("mine", 3, tmp_path)
    assert sorted(found)[0] == "mine"
    assert [text.partition(";")[0] for text in sorted(found)[1:]] == ["mine holds a run already"] * 2


def test_a_claim_is_withdrawn_when_the_run_fails_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name, is_left in (("new", False), ("old", True)):
        with pytest.raises(KeyboardInterrupt), claim_folder(tmp_path / name, resume=False) as folder:
            assert (folder / CONFIG_FILE).is_file()
            raise KeyboardInterrupt
        assert (tmp_path / name).exists() == is_left
        assert not (tmp_path / name / CONFIG_FILE).exists()
    with pytest.raises(KeyboardInterrupt), claim_folder(tmp_path / "new", resume=False) as folder:
        (folder / CONFIG_FILE).write_text("{}")
        raise KeyboardInterrupt
    assert (tmp_path / "new" / CONFIG_FILE).is_file()  # it had begun


# Holds a run, in a process with a child, until it is told or killed.
HOLDS = """
import os, sys
from efficientdet.training.run_folder import claim_folder
with claim_folder(sys.argv[1], resume=sys.argv[2] == "resume"):
    if hasattr(os, "fork") and os.fork() == 0:  # such as a process that loads images
        sys.stdin.read()
        os._exit(0)
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["new", "resume"])
def test_a_run_that_another_process_works_on_is_not_resumed(how: str, tmp_path: Path) -> None:
    folder, unfinished = tmp_path / "run", tmp_path / "run" / ".0123456789ab.part"
    if how == "resume":
        folder.mkdir()
        (folder / CONFIG_FILE).write_text("{}")
    command = [sys.executable, "-c", HOLDS, str(folder), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        unfinished.mkdir()
        expected = rf"{folder}: another process works on this run \(number {process.pid}\)"
        for _ in range(2):  # nor does the attempt end the claim
            with pytest.raises(SettingError, match=expected), claim_folder(folder, resume=True):
                pass
        assert unfinished.is_dir()  # which that process may be writing
        process.kill()
        process.wait()
        (folder / CONFIG_FILE).write_text("{}")
        with claim_folder(folder, resume=True):  # though the child lives
            assert (folder / LOCK_FILE).read_text() == str(os.getpid())
            assert not unfinished.exists()
    assert [path.name for path in folder.iterdir()] == [CONFIG_FILE]


def test_of_many_that_resume_at_once_one_does(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("{}")
    code = CLAIMS.replace("resume=False", "resume=True").replace("print(folder)", "print('resumed'); sys.stdin.read()")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().partition(" (")[0].strip() for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(said) == sorted(["resumed", *[f"{tmp_path}: another process works on this run"] * 3])


def test_a_place_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300), tmp_path / "\0"):
        with pytest.raises(SettingError, match="cannot be used as out"), claim_folder(out, resume=False):
            pass


# State


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A file like a saved state."""
    path = tmp_path / RESUME_FILE
    torch.save({"global_step": 3, "weights": {str(i): torch.randn(64, 16) for i in range(8)}}, path)
    return path


def test_no_state_yet(tmp_path: Path) -> None:
    assert find_state(tmp_path, pytest.fail) is None


def test_a_whole_state_is_taken_without_a_word(state: Path) -> None:
    assert find_state(state.parent, pytest.fail) == state
    spare = state.rename(state.with_name(SPARE_FILE))  # killed between the two moves of a save
    assert find_state(state.parent, pytest.fail) == spare


def _flip_bits(content: bytearray, chance: random.Random) -> None:
    for _ in range(5):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _cut(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def _zero(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content) - 600)
    content[start : start + 600] = bytes(600)


@pytest.mark.parametrize("damage", [_flip_bits, _cut, _zero])
@pytest.mark.parametrize("seed", range(20))
def test_damage_is_named_and_the_save_before_taken(
    seed: int, damage: Callable[[bytearray, random.Random], None], state: Path
) -> None:
    whole = state.read_bytes()
    expected = torch.load(state, weights_only=True)
    state.with_name(SPARE_FILE).write_bytes(whole)
    content = bytearray(whole)
    damage(content, random.Random(seed))
    state.write_bytes(content)
    said: list[str] = []
    found = find_state(state.parent, said.append)
    if found == state:  # only bytes that carry nothing were hit
        assert not said
        left = torch.load(state, weights_only=True)
        assert left["global_step"] == 3
        assert all(torch.equal(left["weights"][name], tensor) for name, tensor in expected["weights"].items())
        return
    assert found == state.with_name(SPARE_FILE)
    (line,) = said
    assert line.startswith(f"{state}: damaged (")
    assert line.endswith(f"; resuming from the save before it, {SPARE_FILE}")
    state.with_name(SPARE_FILE).write_bytes(content)
    with pytest.raises(SettingError, match=r"resume\.ckpt: damaged .*resume\.previous\.ckpt: damaged .*another folder"):
        find_state(state.parent, said.append)


@pytest.mark.parametrize("content", [b"", b"PK", b"no state", b"{}"])
def test_what_is_no_state_is_damage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RESUME_FILE).write_bytes(content)
    with pytest.raises(SettingError, match="damaged"):
        find_state(tmp_path, pytest.fail)
    torch.save({"other": 1}, tmp_path / RESUME_FILE)
    with pytest.raises(SettingError, match="damaged"):
        find_state(tmp_path, pytest.fail)


# The dataset's fingerprint


def _changed(folder: Path, change: Callable[[dict[str, Any], Path], None]) -> list[str]:
    before = fingerprint(read_coco(folder / "train.json"), None)
    content = json.loads((folder / "train.json").read_text())
    change(content, folder / "images")
    (folder / "train.json").write_text(json.dumps(content))
    after = fingerprint(read_coco(folder / "train.json"), None)
    return [name for name in before if before[name] != after[name]]


def _move_a_box(content: dict[str, Any], images: Path) -> None:
    content["annotations"][0]["bbox"][0] += 1


def _relabel(content: dict[str, Any], images: Path) -> None:
    annotation = content["annotations"][0]
    annotation["category_id"] = 10 - annotation["category_id"]


def _make_a_crowd(content: dict[str, Any], images: Path) -> None:
    content["annotations"][0]["iscrowd"] = 1


def _rewrite_an_image(content: dict[str, Any], images: Path) -> None:
    path = images / content["images"][0]["file_name"]
    path.write_bytes(path.read_bytes() + b"\0")


def _swap_images(content: dict[str, Any], images: Path) -> None:
    content["images"].reverse()


def _leave_as_it_is(content: dict[str, Any], images: Path) -> None:
    content["info"] = "written again"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_move_a_box, ["train boxes"]), (_relabel, ["train boxes"]), (_make_a_crowd, ["train boxes"]),
        (_rewrite_an_image, ["train images"]), (_swap_images, ["train images", "train boxes"]), (_leave_as_it_is, []),
    ],
)  # fmt: skip
def test_every_change_of_the_dataset_shows(
    change: Callable[[dict[str, Any], Path], None], expected: list[str], shapes: ModuleType, tmp_path: Path
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 4})
    assert _changed(folder, change) == expected
