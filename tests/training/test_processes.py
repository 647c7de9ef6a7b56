"""Two processes of a run, over gloo: they share its steps, its folder and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from torch import Tensor

from efficientdet.errors import ImageError, SettingError
from efficientdet.training import device, processes
from efficientdet.training.module import DetectionModule
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun

if (os.cpu_count() or 1) < 2:
    pytest.skip("two processes need two cores", allow_module_level=True)

SETTINGS = {"devices": 2, "epochs": 2, "save_every": 1}
# Steps of four images, on one device or on two.
CURVE = {"epochs": 2, "ema_decay": 0.0, "learning_rate": 1e-4}
ALONE, SHARED = {"batch_size": 4, "devices": 1}, {"batch_size": 2, "devices": 2}
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


@pytest.mark.slow
def test_both_are_terminated_and_resumed_to_the_same_weights(
    of_two: TrainingRun, images: Path, shapes: ModuleType, tmp_path: Path
) -> None:
    job = [shapes.TINY.to_dict(), str(images), str(tmp_path / "run"), {**shapes.SETTINGS, **SETTINGS}]
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, json.dumps(job)], capture_output=True, text=True, timeout=900, check=False
    )
    assert "the run can be resumed: " in done.stderr
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
    with pytest.raises(SettingError, match="the process of device 1 was killed by signal 9; resume the run"):
        train(shapes.TINY, images, out=tmp_path / "run", **{**shapes.SETTINGS, **SETTINGS})


def test_a_process_that_fails_before_it_is_ready_is_named(
    images: Path, shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "JOIN", "raise SystemExit(7)")
    with pytest.raises(SettingError, match="the process of device 1 ended with exit code 7"):
        train(shapes.TINY, images, out=tmp_path / "run", **{**shapes.SETTINGS, **SETTINGS})


@pytest.mark.slow
def test_the_others_end_with_the_first(images: Path, shapes: ModuleType, tmp_path: Path) -> None:
    job = [shapes.TINY.to_dict(), str(images), str(tmp_path / "run"), {**shapes.SETTINGS, **SETTINGS}]
    killed = TERMINATED.replace("signal.SIGTERM", "signal.SIGKILL").replace(
        "\nspec,",
        "\nfrom efficientdet.training import processes\n"
        "launch = processes._start\n"
        "def told(*arguments):\n"
        "    process = launch(*arguments)\n"
        "    print(process.pid, flush=True)\n"
        "    return process\n"
        "processes._start = told\n"
        "\nspec,",
    )
    done = subprocess.run(
        [sys.executable, "-c", killed, json.dumps(job)], capture_output=True, text=True, timeout=900, check=False
    )  # returns only when the other has closed its copy of these pipes: when it has ended
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        for _ in range(600):
            os.kill(int(done.stdout), 0)
            time.sleep(0.1)


# The same as one process


def _curve(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The losses of each step to come, as the log gets them."""
    losses: list[dict[str, float]] = []
    log = DetectionModule.log_dict

    def recorded(self: DetectionModule, values: Any, **options: Any) -> None:
        if "train/loss" in values:
            losses.append({name: float(value) for name, value in values.items()})
        log(self, values, **options)

    monkeypatch.setattr(DetectionModule, "log_dict", recorded)
    return losses


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both processes compute in float64: a fresh network with batch statistics makes a percent of a rounding."""
    monkeypatch.setitem(device.LIGHTNING_PRECISIONS, "fp32", "64-true")
    patch = "from efficientdet.training import device; device.LIGHTNING_PRECISIONS['fp32'] = '64-true'; "
    monkeypatch.setattr(processes, "JOIN", patch + processes.JOIN)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_norm": "train"},
        pytest.param({"batch_norm": "frozen", "accumulate": 2, "box_loss": "huber"}, marks=pytest.mark.slow),
        pytest.param(
            {"batch_norm": "train", "gradient_checkpointing": True, "optimizer": "sgd"}, marks=pytest.mark.slow
        ),
    ],
    ids=["batch statistics", "accumulating", "recomputing"],
)
def test_two_devices_follow_the_loss_curve_of_one(
    settings: dict[str, Any], images: Path, shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    exact: None,
) -> None:  # fmt: skip
    losses, runs = _curve(monkeypatch), []
    for name, devices in (("one", ALONE), ("two", SHARED)):
        chosen = {**shapes.SETTINGS, **CURVE, **settings, **devices}
        runs.append(train(shapes.TINY, images / "train.json", out=tmp_path / name, **chosen))
    steps = 2 * CURVE["epochs"]
    assert len(losses) == 2 * steps
    for step, (alone, shared) in enumerate(zip(losses[:steps], losses[steps:], strict=True)):
        assert shared == pytest.approx(alone, rel=1e-6), step
    one, two = (load_file(run.last) for run in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.slow
def test_images_that_one_device_lacks_leave_the_curve_alone(
    shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: None
) -> None:
    """Three images a step: two on the first device, one on the second; only one has boxes."""
    folder = shapes.write_shapes(tmp_path / "set", {"train": 3})
    content = json.loads((folder / "train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    (folder / "train.json").write_text(json.dumps(content))
    losses = _curve(monkeypatch)
    for name, devices in (("one", ALONE), ("two", SHARED)):
        train(shapes.TINY, folder, out=tmp_path / name, **{**shapes.SETTINGS, **CURVE, **devices})
    steps = CURVE["epochs"]
    assert len(losses) == 2 * steps
    for alone, shared in zip(losses[:steps], losses[steps:], strict=True):
        assert shared == pytest.approx(alone, rel=1e-6)


def test_a_loss_that_is_not_finite_is_skipped_by_both(
    images: Path, shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = np.random.default_rng((0, 0)).permutation(8)
    poisoned = (
        "from efficientdet.data.dataset import DetectionDataset\n"
        "read = DetectionDataset.__getitem__\n"
        "def get(self, key):\n"
        "    sample = read(self, key)\n"
        f"    is_it = isinstance(key, tuple) and key == ({order[1]}, 0)\n"
        "    return sample._replace(image=sample.image * float('nan')) if is_it else sample\n"
        "DetectionDataset.__getitem__ = get\n"
    )
    monkeypatch.setattr(processes, "JOIN", poisoned + processes.JOIN)  # the second device alone reads that image
    settings = {**shapes.SETTINGS, **SETTINGS, "batch_norm": "train", "epochs": 1, "ema_decay": 0.0}
    done = train(shapes.TINY, images, out=tmp_path / "run", **settings)
    (message,) = done.report["skipped_steps"]
    assert message.startswith("epoch 0, step 0: the loss is not finite; step skipped, image ids [")
    ids = [image["id"] for image in json.loads((images / "train.json").read_text())["images"]]
    assert json.loads(message.partition("image ids ")[2]) == [ids[order[i]] for i in (0, 2, 1, 3)]
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(done.last).values())


@pytest.mark.parametrize(("before", "after"), [(ALONE, SHARED), pytest.param(SHARED, ALONE, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_devices(
    before: dict[str, int], after: dict[str, int], images: Path, shapes: ModuleType, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = {**shapes.SETTINGS, **CURVE, "save_every": 1, **before}
    job = [shapes.TINY.to_dict(), str(images / "train.json"), str(tmp_path / "run"), settings]
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, json.dumps(job)], capture_output=True, text=True, timeout=900, check=False
    )
    assert "the run can be resumed: " in done.stderr
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == 1
    resumed = train(shapes.TINY, images / "train.json", out=tmp_path / "run", resume=True, devices=after["devices"])
    assert f"devices {after['devices']} instead of {before['devices']}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["batch_size"] == after["batch_size"]
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(resumed.last).values())


@pytest.fixture(scope="module")
def cells(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of cells to train on, five to evaluate on."""
    source, folder = shared_data / "cells", tmp_path_factory.mktemp("cells")
    (folder / "images").symlink_to(source / "images")
    for split, count in (("train", 8), ("val", 5)):
        content = json.loads((source / f"{split}.json").read_text())
        content["images"] = content["images"][:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


OF_CELLS = {
    "weights": "cells", "image_size": 256, "precision": "fp32", "device": "cpu", "workers": 0, "quiet": True,
}  # fmt: skip


@pytest.mark.slow
def test_a_trained_detector_goes_on_on_two_devices_as_on_one(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled detector of cells, in float32."""
    losses, settings = _curve(monkeypatch), {**OF_CELLS, "epochs": 2, "learning_rate": 1e-4}
    for name, devices in (("one", ALONE), ("two", SHARED)):
        train("lite0", cells / "train.json", out=tmp_path / name, **settings, **devices)
    assert len(losses) == 8
    for alone, shared in zip(losses[:4], losses[4:], strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)


def test_two_devices_evaluate_to_the_same_ap(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights: those of the bundled detector of cells, which a rate of nearly 0 leaves as they are."""
    monkeypatch.setattr(DetectionModule, "train", lambda self, mode=True: LightningModule.train(self, False))
    still = (
        "from lightning.pytorch import LightningModule\n"
        "from efficientdet.training.module import DetectionModule\n"
        "DetectionModule.train = lambda self, mode=True: LightningModule.train(self, False)\n"
    )
    monkeypatch.setattr(processes, "JOIN", still + processes.JOIN)
    settings = {**OF_CELLS, "epochs": 1, "learning_rate": 1e-30, "ema_decay": 0.0}
    runs = [train("lite0", cells, out=tmp_path / str(one["devices"]), **settings, **one) for one in (ALONE, SHARED)]
    weights = [load_file(run.last) for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-20)
    assert runs[0].metrics is not None
    assert runs[0].metrics.ap > 0.1
    assert runs[0].metrics == runs[1].metrics
