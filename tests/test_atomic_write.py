from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from efficientdet import atomic_write
from efficientdet.atomic_write import replacing, write_json, write_text


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_text(path, "first é")
    write_json(path, {"second": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"second": "é"}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_what_was_written_beside_the_file_comes_along(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.xml") as temporary:
        temporary.with_suffix(".bin").write_text("weights")
        temporary.write_text("graph")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.bin": "weights", "a.xml": "graph"}


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        assert temporary.suffix == ".txt" and tmp_path in temporary.parents
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_the_longest_name_that_the_system_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'é' * 125}.json"  # 255 bytes
    write_text(path, "x")
    assert path.read_text() == "x"
    with replacing(path) as temporary:
        assert len(temporary.name) <= len(path.name)
        temporary.write_text("y")


def test_threads_that_write_one_file_end_with_one_of_their_texts(tmp_path: Path) -> None:
    texts = [str(number) * 100_000 for number in range(8)]
    failures: list[BaseException] = []
    start = threading.Barrier(len(texts))

    def write(text: str) -> None:
        start.wait()
        try:
            for _ in range(5):
                write_text(tmp_path / "a.txt", text)
                assert (tmp_path / "a.txt").read_text() in texts
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_get_the_permissions_of_new_files(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)  # which gives the file to its owner alone
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.safetensors", "a.txt")] == [mode, mode]


def test_the_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(atomic_write.os, "fsync", lambda file: (done.append("fsync"), real_fsync(file)))
    monkeypatch.setattr(atomic_write.os, "replace", lambda *paths: (done.append("replace"), real_replace(*paths)))
    write_text(tmp_path / "a.txt", "x")
    assert done == ["fsync", "replace", "fsync"]
