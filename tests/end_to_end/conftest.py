"""The tiny data set of tests/training, a tiny checkpoint, and the command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from efficientdet import cli


@pytest.fixture(scope="session")
def data(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to train on, two to evaluate on."""
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 4, "val": 2})
    return folder


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `efficientdet ...` as the console script does, but in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["efficientdet", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run
