"""The tiny data set of tests/training, a tiny checkpoint, and the command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from efficientdet import cli
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.create import create_model
from efficientdet.weights.info import CheckpointInfo, default_preprocessing


@pytest.fixture(scope="session")
def data(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to train on, two to evaluate on."""
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 4, "val": 2})
    return folder


@pytest.fixture(scope="session")
def checkpoint(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    info = CheckpointInfo(shapes.TINY, ("disc", "square"), (3, 7), default_preprocessing(shapes.TINY))
    save_checkpoint(path, create_model(shapes.TINY, 2).state_dict(), info)
    return path


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
