"""Two processes of a run, over gloo: they share its steps, its folder and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from efficientdet.errors import ImageError, SettingError
from efficientdet.training import device
from efficientdet.training.module import DetectionModule
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun

if (os.cpu_count() or 1) < 2:
    pytest.skip("two processes need two cores", allow_module_level=True)

SETTINGS = {"devices": 2, "epochs": 2, "save_every": 1}
# Steps of four images, on one device or on two.
CURVE = {"epochs": 2, "ema_decay": 0.0, "learning_rate": 1e-4}
ALONE, SHARED = {"batch_size": 4, "devices": 1}, {"batch_size": 2, "devices": 2}
# As the first step ends, the process that called `train` gets a signal, and the first device waits until it is told.
SIGNALED = """
import multiprocessing, os, signal, time
from efficientdet.training.callbacks import SaveCheckpoints

end = SaveCheckpoints.on_train_batch_end
def signaled(self, trainer, *arguments):
    if trainer.is_global_zero and not self.stop:
        caller = multiprocessing.parent_process()
        os.kill(caller.pid if caller else os.getpid(), signal.SIGTERM)
        while not self.stop:
            time.sleep(0.01)
    end(self, trainer, *arguments)
SaveCheckpoints.on_train_batch_end = signaled
"""
# A run whose processes are signaled.
RUN = """
import json, sys
from lightning.pytorch.callbacks import Callback
from efficientdet.family import ModelSpec
from efficientdet.training.run import train

spec, data, out, settings, code = json.loads(sys.argv[1])
class Signaled(Callback):
    def __reduce__(self):
        return eval, (f"[exec({code!r}, {{}}), __import__('lightning.pytorch').pytorch.Callback()][1]",)
if settings["devices"] == 1:
    exec(code, {})
train(ModelSpec.from_dict(spec), data, out=out, callbacks=[Signaled()], **settings)
"""
# Writes the losses of each step into a file.
RECORDED = """
import json
from efficientdet.training.module import DetectionModule
log = DetectionModule.log_dict
def recorded(self, values, **options):
    if "train/loss" in values and self.global_rank == 0:
        with open({path!r}, "a") as file:
            file.write(json.dumps({{name: float(value) for name, value in values.items()}}) + "\\n")
    log(self, values, **options)
DetectionModule.log_dict = recorded
"""
# In float64: a fresh network with batch statistics makes a percent of a rounding.
EXACT = "from efficientdet.training import device; device.LIGHTNING_PRECISIONS['fp32'] = '64-true'\n"


@pytest.fixture(scope="module")
def images(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 8, "val": 3})
    return folder


@pytest.fixture(scope="module")
def of_two(images: Path, shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return train(shapes.LITE, images, out=tmp_path_factory.mktemp("run") / "two", **{**shapes.SETTINGS, **SETTINGS})


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


def _run(*job: Any) -> subprocess.CompletedProcess[str]:
    """The run in a process of its own."""
    command = [sys.executable, "-c", RUN, json.dumps(job)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_both_are_terminated_and_resumed_to_the_same_weights(
    of_two: TrainingRun, images: Path, shapes: ModuleType, tmp_path: Path
) -> None:
    settings = {**shapes.SETTINGS, **SETTINGS}
    done = _run(shapes.LITE.to_dict(), str(images), str(tmp_path / "run"), settings, SIGNALED)
    assert done.returncode == 143
    assert "the run can be resumed: " in done.stderr
    assert "Traceback" not in done.stderr
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == 1
    resumed = train(shapes.LITE, images, out=tmp_path / "run", resume=True, quiet=True)
    expected = load_file(of_two.last)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(resumed.last).items())


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_either_is_raised(rank: int, shapes: ModuleType, tmp_path: Path) -> None:
    images = shapes.write_shapes(tmp_path / "set", {"train": 4})
    first = np.random.default_rng((0, 0)).permutation(4)[rank]  # that this device reads first
    broken = images / "images" / f"train{first + 1}.png"
    broken.write_bytes(broken.read_bytes()[:120])
    with pytest.raises(ImageError, match=broken.name):
        train(shapes.LITE, images, out=tmp_path / "run", **{**shapes.SETTINGS, **SETTINGS}, cache=False)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal\n"
            "from efficientdet.training.module import DetectionModule\n"
            "step = DetectionModule.training_step\n"
            "def killed(self, batch, batch_idx):\n"
            "    os.kill(os.getpid(), signal.SIGKILL if self.global_rank == 1 else 0)\n"
            "    return step(self, batch, batch_idx)\n"
            "DetectionModule.training_step = killed\n",
            "the process of device 1 was killed by SIGKILL; resume the run",
        ),
        ("import os; os._exit(7)", r"the process of device \d ended with exit code 7"),
    ],
    ids=["in a step", "before it is ready"],
)
def test_a_process_that_dies_does_not_leave_the_other_waiting(
    code: str,
    message: str,
    images: Path,
    shapes: ModuleType,
    tmp_path: Path,
    in_each_process: Callable[[str], Callback],
) -> None:
    with pytest.raises(SettingError, match=message):
        train(
            shapes.LITE, images, out=tmp_path / "run", callbacks=[in_each_process(code)],
            **{**shapes.SETTINGS, **SETTINGS},
        )  # fmt: skip


@pytest.mark.slow
def test_all_end_with_the_process_that_started_them(images: Path, shapes: ModuleType, tmp_path: Path) -> None:
    killed = SIGNALED.replace("SIGTERM", "SIGKILL")
    settings = {**shapes.SETTINGS, **SETTINGS}
    # This returns only when all have closed their copies of its pipes, which is when they have ended.
    done = _run(shapes.LITE.to_dict(), str(images), str(tmp_path / "run"), settings, killed)
    assert done.returncode == -signal.SIGKILL


# The same as one process


def _losses(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_each_process: Callable[[str], Callback]
) -> Callable[..., list[list[dict[str, float]]]]:
    """Trains on one device and on two; the losses of each step, as the log gets them."""

    def train_both(model: Any, data: Path, is_exact: bool = True, **settings: Any) -> list[list[dict[str, float]]]:
        found = []
        for name, devices in (("one", ALONE), ("two", SHARED)):
            path = tmp_path / f"{name}.jsonl"
            code = (EXACT if is_exact else "") + RECORDED.format(path=str(path))
            with monkeypatch.context() as patched:
                if devices is ALONE:
                    patched.setitem(device.LIGHTNING_PRECISIONS, "fp32", "64-true" if is_exact else "32-true")
                    patched.setattr(DetectionModule, "log_dict", DetectionModule.log_dict)  # back after the run
                    exec(code.removeprefix(EXACT), {})
                own = [in_each_process(code)]
                train(model, data, out=tmp_path / name, callbacks=own, **{**CURVE, **settings, **devices})
            found.append(_losses(path))
        return found

    return train_both


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_norm": "train"},
        pytest.param({"batch_norm": "frozen", "accumulate": 2, "box_loss": "huber"}, marks=pytest.mark.slow),
        pytest.param(
            {"batch_norm": "train", "gradient_checkpointing": True, "optimizer": "sgd"}, marks=pytest.mark.slow
        ),
        pytest.param({"batch_norm": "train", "assignment": "task-aligned", "box_loss": "giou"}, marks=pytest.mark.slow),
    ],
    ids=["batch statistics", "accumulating", "recomputing", "task-aligned"],
)
def test_two_devices_follow_the_loss_curve_of_one(
    settings: dict[str, Any], images: Path, shapes: ModuleType, tmp_path: Path,
    curves: Callable[..., list[list[dict[str, float]]]],
) -> None:  # fmt: skip
    one, two = curves(shapes.LITE, images / "train.json", **{**shapes.SETTINGS, **CURVE, **settings})
    assert len(one) == len(two) == 2 * CURVE["epochs"]
    for step, (alone, shared) in enumerate(zip(one, two, strict=True)):
        assert shared == pytest.approx(alone, rel=1e-6), step
    weights = [load_file(tmp_path / name / "last.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.slow
def test_images_that_one_device_lacks_leave_the_curve_alone(
    shapes: ModuleType, tmp_path: Path, curves: Callable[..., list[list[dict[str, float]]]]
) -> None:
    """Three images a step: two on the first device, one on the second; only one has boxes."""
    folder = shapes.write_shapes(tmp_path / "set", {"train": 3})
    content = json.loads((folder / "train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    (folder / "train.json").write_text(json.dumps(content))
    one, two = curves(shapes.LITE, folder, **{**shapes.SETTINGS, **CURVE})
    assert len(one) == len(two) == CURVE["epochs"]
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-6)


def test_a_loss_that_is_not_finite_is_skipped_by_both(
    images: Path, shapes: ModuleType, tmp_path: Path, in_each_process: Callable[[str], Callback]
) -> None:
    order = np.random.default_rng((0, 0)).permutation(8)
    poisoned = (  # an image that the second device alone reads
        "from efficientdet.data.dataset import DetectionDataset\n"
        "read = DetectionDataset.__getitem__\n"
        "def get(self, key):\n"
        "    sample = read(self, key)\n"
        f"    is_it = isinstance(key, tuple) and key == ({order[1]}, 0)\n"
        "    return sample._replace(image=sample.image * float('nan')) if is_it else sample\n"
        "DetectionDataset.__getitem__ = get\n"
    )
    settings = {**shapes.SETTINGS, **SETTINGS, "batch_norm": "train", "epochs": 1, "ema_decay": 0.0}
    done = train(shapes.LITE, images, out=tmp_path / "run", callbacks=[in_each_process(poisoned)], **settings)
    (message,) = done.report["skipped_steps"]
    assert message.startswith("epoch 0, step 0: the loss is not finite; step skipped, image ids [")
    ids = [image["id"] for image in json.loads((images / "train.json").read_text())["images"]]
    assert json.loads(message.partition("image ids ")[2]) == [ids[order[i]] for i in (0, 2, 1, 3)]
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(done.last).values())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(ALONE, SHARED), pytest.param(SHARED, ALONE, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_devices(
    before: dict[str, int], after: dict[str, int], images: Path, shapes: ModuleType, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = {**shapes.SETTINGS, **CURVE, "save_every": 1, **before}
    done = _run(shapes.LITE.to_dict(), str(images / "train.json"), str(tmp_path / "run"), settings, SIGNALED)
    assert "the run can be resumed: " in done.stderr
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == 1
    resumed = train(shapes.LITE, images / "train.json", out=tmp_path / "run", resume=True, devices=after["devices"])
    if after is ALONE:  # what other processes print is not captured
        assert "devices 1 instead of 2" in capsys.readouterr().err
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
    cells: Path, curves: Callable[..., list[list[dict[str, float]]]]
) -> None:
    """The bundled detector of cells, in float32."""
    one, two = curves("lite0", cells / "train.json", is_exact=False, **OF_CELLS)
    assert len(one) == len(two) == 4
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)


def test_two_devices_evaluate_to_the_same_ap(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_each_process: Callable[[str], Callback]
) -> None:
    """With the same weights: those of the bundled detector of cells, which a rate of nearly 0 leaves as they are."""
    monkeypatch.setattr(DetectionModule, "train", lambda self, mode=True: LightningModule.train(self, False))
    still = (
        "from lightning.pytorch import LightningModule\n"
        "from efficientdet.training.module import DetectionModule\n"
        "DetectionModule.train = lambda self, mode=True: LightningModule.train(self, False)\n"
    )
    settings = {**OF_CELLS, "epochs": 1, "learning_rate": 1e-30, "ema_decay": 0.0}
    settings["callbacks"] = [in_each_process(still)]
    runs = [train("lite0", cells, out=tmp_path / str(one["devices"]), **settings, **one) for one in (ALONE, SHARED)]
    weights = [load_file(run.last) for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-20)
    assert runs[0].metrics is not None
    assert runs[0].metrics.ap > 0.1
    assert runs[0].metrics == runs[1].metrics
