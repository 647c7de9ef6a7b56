from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from efficientdet.errors import SettingError
from efficientdet.training import batch_size
from efficientdet.training.batch_size import find_batch_size, halved, is_out_of_memory
from efficientdet.training.config import TrainConfig
from efficientdet.training.module import DetectionModule
from efficientdet.training.prepare import Job, Splits, read_splits
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen images to train on."""
    found: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 18, "val": 2})
    return found


@pytest.fixture
def job(shapes: ModuleType, folder: Path, tmp_path: Path) -> Job:
    config = TrainConfig(batch_size="auto", device="cpu", precision="fp32", workers=0)
    return Job(shapes.TINY, folder, config, folder=tmp_path / "none")


@pytest.fixture
def splits(job: Job) -> Splits:
    return read_splits(job, QUIET)


# auto


def test_on_a_cpu_auto_follows_the_free_memory(job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "free_memory", lambda: 10**15)
    assert find_batch_size(job, splits) == 16  # the largest that pays
    per_image = batch_size._saved_bytes(job, splits)
    assert 10**5 < per_image < 10**9
    enough_for_9 = 9.5 * per_image * batch_size.WHOLE_STEP / batch_size.MEMORY_SHARE
    monkeypatch.setattr(batch_size, "free_memory", lambda: enough_for_9)
    assert find_batch_size(job, splits) == 8
    monkeypatch.setattr(batch_size, "free_memory", lambda: 1)
    assert find_batch_size(job, splits) == 2
    assert not job.folder.exists()


def test_what_is_saved_grows_with_the_image(job: Job, splits: Splits) -> None:
    wide = job._replace(config=TrainConfig(image_size=128, device="cpu", precision="fp32", workers=0))
    assert 3 < batch_size._saved_bytes(wide, splits) / batch_size._saved_bytes(job, splits) < 5


def test_where_free_memory_is_unknown_auto_is_the_usual(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> int:
        raise OSError

    monkeypatch.setattr(batch_size, "free_memory", unknown)
    assert find_batch_size(job, splits) == 8


@pytest.mark.parametrize(("limit", "expected"), [(5, 4), (16, 16), (1, 2), (10**6, 16)])
def test_on_a_gpu_auto_is_found_by_trying(
    limit: int, expected: int, job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = batch_size._loss

    def limited(module: DetectionModule, batch: Any, device: str) -> Tensor:
        if len(batch.indices) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(module, batch, device)

    monkeypatch.setattr(batch_size, "choose_device", lambda config: "mps")  # neither a CPU nor CUDA's own figures
    monkeypatch.setattr(batch_size, "_loss", lambda module, batch, device: limited(module, batch, "cpu"))
    monkeypatch.setattr(DetectionModule, "to", lambda self, device: self)
    assert find_batch_size(job, splits) == expected


def test_a_run_with_auto_says_and_keeps_what_it_found(
    shapes: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**shapes.SETTINGS, "epochs": 1, "batch_size": "auto", "quiet": False}
    train(shapes.TINY, folder, out=tmp_path / "run", **settings)
    assert "batch size 16" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["batch_size"] == 16
    again = train(shapes.TINY, folder, out=tmp_path / "run", resume=True, **settings)
    assert again.report["train"]["images"] == 18


# Out of memory


def _limit(monkeypatch: pytest.MonkeyPatch, images: int, from_step: int = 0) -> list[int]:
    """A device whose memory holds batches of some images; returns the batches that were trained on."""
    step, sizes = DetectionModule.training_step, list[int]()

    def limited(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        if len(sizes) >= from_step and len(batch.indices) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        sizes.append(len(batch.indices))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", limited)
    return sizes


@pytest.fixture
def run(shapes: ModuleType, folder: Path, tmp_path: Path) -> Callable[..., TrainingRun]:
    def start(**settings: Any) -> TrainingRun:
        chosen = {"out": tmp_path / "run", **shapes.SETTINGS, "batch_size": 8, "batch_norm": "frozen", **settings}
        return train(shapes.TINY, folder, **chosen)

    return start


def test_out_of_memory_halves_the_batch_and_a_step_sees_the_same_images(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = _limit(monkeypatch, 3)
    done = run(quiet=False)
    said = capsys.readouterr().err
    assert "out of memory in batches of 8 images: going on with batch_size 4 and accumulate 2" in said
    assert "out of memory in batches of 4 images: going on with batch_size 2 and accumulate 4" in said
    assert sizes == [2] * (8 * 3)  # two steps of 8 images in each of three epochs
    assert json.loads((done.folder / "config.json").read_text())["config"]["accumulate"] == 4


@pytest.mark.parametrize("from_step", [1, 2, 3])  # within the first epoch, between two, within the second
def test_out_of_memory_later_goes_on_from_the_last_save(
    from_step: int, run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(out=tmp_path / "whole", save_every=1, learning_rate=1e-3, ema_decay=0.0)
    sizes = _limit(monkeypatch, 4, from_step)
    done = run(save_every=1, learning_rate=1e-3, ema_decay=0.0)
    assert sizes == [8] * from_step + [4] * 2 * (6 - from_step)
    expected = load_file(whole.last)
    for name, tensor in load_file(done.last).items():  # batch statistics of the heads differ
        if "backbone" in name and tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name], rtol=0.02, atol=0.02, msg=name)


def test_a_single_image_that_does_not_fit_says_what_to_change() -> None:
    with pytest.raises(SettingError, match="out of memory with a single image; choose a smaller image_size"):
        halved(TrainConfig(batch_size=1), QUIET)
    with pytest.raises(SettingError, match="batch_size 4 on each of 2 devices; start again with batch_size 2 and acc"):
        halved(TrainConfig(batch_size=4, devices=2), QUIET)


@pytest.mark.parametrize(("size", "smaller"), [(8, 4), (9, 3), (7, 1), (2, 1), (6, 3)])
def test_a_smaller_batch_keeps_the_images_of_a_step_the_rate_and_the_batch_norms(size: int, smaller: int) -> None:
    before = TrainConfig(batch_size=size, accumulate=3)
    after = halved(before, QUIET)
    assert after.batch_size == smaller
    assert after.images_at_once * after.accumulate == size * 3
    assert after.peak_learning_rate() == pytest.approx(before.peak_learning_rate())
    large = TrainConfig(batch_size=32, weights="people")
    assert halved(large, QUIET).freezes_batch_norm() == large.freezes_batch_norm()


def test_what_is_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
