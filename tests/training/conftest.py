"""The maker of tiny datasets, and two tiny runs that several tests look at."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun


class InEachProcess(Callback):
    """A callback that runs some code in each process of a run on several devices, before the run begins there."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        made = "__import__('lightning.pytorch').pytorch.Callback()"
        return eval, (f"[exec({self.code!r}, {{}}), {made}][1]",)


@pytest.fixture(scope="session")
def in_each_process() -> type[InEachProcess]:
    """Patches for the processes of a run, which start afresh: `callbacks=[in_each_process(code)]`."""
    return InEachProcess


@pytest.fixture(scope="session")
def data(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to train on, four to evaluate on."""
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 6, "val": 4})
    return folder


@pytest.fixture(scope="session")
def trained(shapes: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """Three epochs with a short average; frozen stem and two stages, frozen batch norms."""
    return train(
        shapes.TINY, data, out=tmp_path_factory.mktemp("run") / "frozen", ema_decay=0.5, frozen_stages=2,
        batch_norm="frozen", evaluate_every=2, **shapes.SETTINGS,
    )  # fmt: skip


@pytest.fixture(scope="session")
def same_again(shapes: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """The same as `trained`, into another folder."""
    return train(
        shapes.TINY, data, out=tmp_path_factory.mktemp("run") / "frozen", ema_decay=0.5, frozen_stages=2,
        batch_norm="frozen", evaluate_every=2, **shapes.SETTINGS,
    )  # fmt: skip
