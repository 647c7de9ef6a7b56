"""Two processes of a run, over gloo: they share its steps, its folder and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from efficientdet.errors import ImageError, SettingError
from efficientdet.training import processes
from efficientdet.training.module import DetectionModule
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun

if (os.cpu_count() or 1) < 2:
    pytest.skip("two processes need two cores", allow_module_level=True)

SETTINGS = {"devices": 2, "epochs": 2, "save_every": 1}
# A run that gets SIGTERM as soon as it has saved a state.
TERMINATED = """
import json, os, signal, sys
from efficientdet.family import ModelSpec
from efficientdet.training.callbacks import SaveCheckpoints
from efficientdet.training.run import train

start = SaveCheckpoints.on_train_batch_end
def terminated(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    start(self, *arguments)
SaveCheckpoints.on_train_batch_end = terminated
spec, data, out, settings = json.loads(sys.argv[1])
train(ModelSpec.from_dict(spec), data, out=out, **settings)
"""


@pytest.fixture(scope="module")
def images(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 8, "val": 3})
    return folder


@pytest.fixture(scope="module")
def of_two(images: Path, shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return train(shapes.TINY, images, out=tmp_path_factory.mktemp("run") / "two", **{**shapes.SETTINGS, **SETTINGS})


def test_two_devices_share_a_run(of_two: TrainingRun) -> None:
    state = torch.load(of_two.folder / "resume.ckpt", weights_only=True)
    assert state["global_step"] == 2 * 8 // (2 * 2)
    assert of_two.metrics is not None
    assert of_two.metrics.images == 3
    assert of_two.report["skipped_steps"] == []
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(of_two.last).values())
    assert [path.name for path in of_two.folder.parent.iterdir()] == ["two"]
    assert not {"LOCAL_RANK", "MASTER_PORT"} & set(os.environ)
    assert not torch.distributed.is_initialized()


def test_both_are_terminated_and_resumed_to_the_same_weights(
    of_two: TrainingRun, images: Path, shapes: ModuleType, tmp_path: Path
) -> None:
    job = [shapes.TINY.to_dict(), str(images), str(tmp_path / "run"), {**shapes.SETTINGS, **SETTINGS}]
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, json.dumps(job)], capture_output=True, text=True, timeout=300, check=False
    )
    assert "Terminated: the run can be resumed: " in done.stderr
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == 1
    resumed = train(shapes.TINY, images, out=tmp_path / "run", resume=True, quiet=True)
    expected = load_file(of_two.last)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(resumed.last).items())


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_either_is_raised(rank: int, shapes: ModuleType, tmp_path: Path) -> None:
    images = shapes.write_shapes(tmp_path / "set", {"train": 4})
    first = np.random.default_rng((0, 0)).permutation(4)[rank]  # that this device reads first
    broken = images / "images" / f"train{first + 1}.png"
    broken.write_bytes(broken.read_bytes()[:120])
    with pytest.raises(ImageError, match=broken.name):
        train(shapes.TINY, images, out=tmp_path / "run", **{**shapes.SETTINGS, **SETTINGS}, cache=False)
    assert not torch.distributed.is_initialized()


def test_a_process_that_is_killed_does_not_leave_the_other_waiting(
    images: Path, shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = processes._start, []
    step = DetectionModule.training_step

    def recorded(*arguments: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments))
        return started[-1]

    def killing(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        os.kill(started[0].pid, signal.SIGKILL)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(processes, "_start", recorded)
    monkeypatch.setattr(DetectionModule, "training_step", killing)
    with pytest.raises(SettingError, match="the process of another device was killed by signal 9; resume the run"):
        train(shapes.TINY, images, out=tmp_path / "run", **{**shapes.SETTINGS, **SETTINGS})


def test_a_process_that_fails_before_it_is_ready_is_named(
    images: Path, shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "JOIN", "raise SystemExit(7)")
    with pytest.raises(SettingError, match="the process of another device ended with exit code 7"):
        train(shapes.TINY, images, out=tmp_path / "run", **{**shapes.SETTINGS, **SETTINGS})
