from __future__ import annotations

import json
from pathlib import Path

import pytest

from efficientdet.atomic_write import replacing, write_json, write_text


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_text(path, "first é")
    write_json(path, {"second": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"second": "é"}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
