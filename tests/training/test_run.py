from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from efficientdet.data import augment as augment_module
from efficientdet.data.dataset import DetectionDataset, Sample
from efficientdet.errors import DataError, ImageError, SettingError, Terminated, WeightsError
from efficientdet.images.letterbox import IMAGENET
from efficientdet.inference.detector import load
from efficientdet.training import module as training_module
from efficientdet.training.callbacks import Ema, SaveCheckpoints
from efficientdet.training.config import LossSettings
from efficientdet.training.losses import Losses, matched_loss
from efficientdet.training.module import DetectionModule
from efficientdet.training.pace import Pace
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun
from efficientdet.weights.checkpoint import load_checkpoint, save_checkpoint
from efficientdet.weights.create import create_model
from efficientdet.weights.info import CheckpointInfo, default_preprocessing

STATISTICS = ("running_mean", "running_var")


@pytest.fixture
def run(shapes: ModuleType, data: Path, tmp_path: Path) -> Callable[..., TrainingRun]:
    """Trains the tiny network on the tiny dataset, unless told otherwise."""

    def start(**settings: Any) -> TrainingRun:
        chosen = {"out": tmp_path / "run", "data": data, **shapes.SETTINGS, **settings}
        return train(chosen.pop("model", shapes.TINY), **chosen)

    return start


def _is_finite(checkpoint: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in load_file(checkpoint).values())


def _log(run: TrainingRun) -> list[dict[str, str]]:
    with (run.folder / "log" / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images/s" and v} for row in csv.DictReader(file)]


def _fresh_state(shapes: ModuleType, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return create_model(shapes.TINY, 2).state_dict()


# The same again


def test_the_same_seed_gives_the_same_run(trained: TrainingRun, same_again: TrainingRun) -> None:
    assert trained.last.read_bytes() == same_again.last.read_bytes()
    assert trained.best.read_bytes() == same_again.best.read_bytes()
    assert trained.report == same_again.report


def test_the_same_seed_gives_the_same_loss_curve(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves: list[list[float]] = []
    step = DetectionModule.training_step

    def recorded(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        loss = step(self, batch, batch_idx)
        curves[-1].append(float("nan") if loss is None else loss.item())
        return loss

    monkeypatch.setattr(DetectionModule, "training_step", recorded)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        curves.append([])
        run(out=tmp_path / name, seed=seed, epochs=4, drop_path=0.2)
    assert len(curves[0]) == 12
    assert all(map(math.isfinite, curves[0]))
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_every_epoch_has_its_own_order_and_images(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], float]] = []
    step = DetectionModule.training_step

    def recorded(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        seen.append((batch.indices.tolist(), batch.images.double().sum().item()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", recorded)
    run()
    epochs = [seen[i : i + 3] for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(index for batch, _ in epoch for index in batch) == list(range(6))
    assert len({str(epoch) for epoch in epochs}) == 3
    assert len({total for _, total in seen}) == 9


# What a run leaves


def test_a_run_leaves_what_it_says(trained: TrainingRun) -> None:
    for name in (
        "best.safetensors", "last.safetensors", "metrics.json", "report.json", "report.html", "config.json",
        "resume.ckpt",
    ):  # fmt: skip
        assert (trained.folder / name).is_file(), name
    assert list((trained.folder / "log").glob("events.out.tfevents*"))
    assert not list(trained.folder.rglob("*.part"))
    assert json.loads((trained.folder / "report.json").read_text()) == trained.report
    assert trained.report["train"]["images"] == 6
    assert trained.report["val"]["images"] == 4
    assert trained.report["skipped_steps"] == []
    assert trained.metrics is not None
    assert trained.metrics.images == 4


def test_the_last_epoch_is_evaluated_whatever_the_interval(trained: TrainingRun) -> None:
    steps = [int(row["step"]) for row in _log(trained) if "val/ap" in row]
    assert steps == [5, 8]  # after the second epoch, as asked for, and after the third and last


def test_the_best_checkpoint_needs_nothing_else(trained: TrainingRun, data: Path) -> None:
    detector = load(trained.best, device="cpu")
    assert detector.class_names == ("disc", "square")
    assert detector.info.category_ids == (3, 7)
    assert detector.image_size == (64, 64)
    assert detector.info.training["epochs"] == 3
    assert detector.info.training["data"] == data.name
    assert detector.info.metrics["ap"] == pytest.approx(trained.report["best_ap"])
    found = detector.predict(data / "images" / "val1.png", score_threshold=0.0)
    assert 0 < len(found) <= 100
    assert found.category_ids == (3, 7)


def test_the_averaged_weights_are_saved(trained: TrainingRun) -> None:
    state = torch.load(trained.folder / "resume.ckpt", weights_only=True)
    saved = load_file(trained.last)
    differ = 0
    for name, tensor in saved.items():
        assert torch.equal(tensor, state["state_dict"][f"model.{name}"]), name
        differ += not torch.equal(tensor, state["current_model_state"][f"model.{name}"])
    assert differ > 20


def test_without_an_average_the_weights_themselves_are_saved(run: Callable[..., TrainingRun]) -> None:
    done = run(ema_decay=0.0, epochs=1)
    state = torch.load(done.folder / "resume.ckpt", weights_only=True)
    assert "current_model_state" not in state
    for name, tensor in load_file(done.last).items():
        assert torch.equal(tensor, state["state_dict"][f"model.{name}"]), name


def test_the_average_does_not_copy_the_images(run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch) -> None:
    sets = []
    setup = Ema.setup

    def looked_at(self: Ema, trainer: Any, pl_module: Any, stage: str) -> None:
        setup(self, trainer, pl_module, stage)
        assert self._average_model is not None
        sets.append((self._average_model.module.train_set, pl_module.train_set, pl_module.val_set))

    monkeypatch.setattr(Ema, "setup", looked_at)
    run(epochs=1, cache=True)
    ((copied, train_set, val_set),) = sets
    assert copied is None
    assert isinstance(train_set, DetectionDataset)
    assert isinstance(val_set, DetectionDataset)


def test_frozen_stages_do_not_move(shapes: ModuleType, trained: TrainingRun) -> None:
    fresh, saved = _fresh_state(shapes), load_file(trained.last)
    frozen = ("backbone.conv_stem.", "backbone.bn1.", "backbone.blocks.0.", "backbone.blocks.1.")
    for name, tensor in saved.items():
        if name.startswith(frozen):
            assert torch.equal(tensor, fresh[name]), name
    moved = [name for name, tensor in saved.items() if not torch.equal(tensor, fresh[name])]
    assert "backbone.blocks.2.0.conv_pw.weight" in moved
    assert "class_head.predict.pointwise.bias" in moved


def test_frozen_batch_norms_keep_their_statistics(shapes: ModuleType, trained: TrainingRun) -> None:
    fresh, saved = _fresh_state(shapes), load_file(trained.last)
    statistics = {name for name in saved if name.endswith(STATISTICS)}
    moved = {name for name in statistics if not torch.equal(saved[name], fresh[name])}
    assert {name for name in statistics if not name.startswith("backbone.")} == moved
    assert not torch.equal(saved["backbone.blocks.3.0.bn1.weight"], fresh["backbone.blocks.3.0.bn1.weight"])


def test_training_batch_norms_follow_the_images(shapes: ModuleType, run: Callable[..., TrainingRun]) -> None:
    fresh, saved = _fresh_state(shapes), load_file(run(epochs=1, batch_norm="train").last)
    still = [name for name in saved if name.endswith(STATISTICS) and torch.equal(saved[name], fresh[name])]
    assert not still


# Accumulation and the schedule


@pytest.mark.parametrize(
    "loss",
    [{}, {"box_loss": "giou"}, {"box_loss": "giou", "assignment": "task-aligned"}],
    ids=["huber", "giou", "tood"],
)
def test_two_batches_of_four_move_the_weights_as_one_of_eight(
    loss: dict[str, str], shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def without_batch_statistics(self: DetectionModule, mode: bool = True) -> DetectionModule:
        LightningModule.train(self, mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    monkeypatch.setattr(DetectionModule, "train", without_batch_statistics)
    eight = shapes.write_shapes(tmp_path / "eight", {"train": 8})
    settings = {"data": eight, "ema_decay": 0.0, "learning_rate": 0.01, "epochs": 3, **loss}
    one = load_file(run(out=tmp_path / "one", batch_size=8, **settings).last)
    two = load_file(run(out=tmp_path / "two", batch_size=4, accumulate=2, **settings).last)
    fresh = _fresh_state(shapes)
    assert max((one[name] - fresh[name]).abs().max().item() for name in one if one[name].ndim == 4) > 1e-3
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_a_recipe_decides_what_is_not_given(run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    def settings_of(name: str, **given: Any) -> dict[str, Any]:
        done = run(out=tmp_path / name, epochs=1, **given)
        assert _is_finite(done.last)
        settings: dict[str, Any] = json.loads((done.folder / "config.json").read_text())["config"]
        return settings

    modern = settings_of("modern", recipe="modern", flip=0.25)
    paper = settings_of("paper", recipe="paper", box_loss="giou")
    assert (modern["optimizer"], modern["box_loss"], modern["flip"]) == ("adamw", "giou", 0.25)
    assert (paper["optimizer"], paper["box_loss"], paper["flip"]) == ("sgd", "giou", 0.5)


def test_the_learning_rate_follows_the_schedule(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = DetectionModule.training_step

    def recorded(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", recorded)
    run(epochs=4, accumulate=3, warmup_epochs=1)  # one step an epoch: 4 steps, the first of them warms up
    peak = 0.08 * 6 / 64
    assert rates[::3] == pytest.approx([0.1 * peak, peak, 0.75 * peak, 0.25 * peak])


# What is not finite


def _poisoned(index: int) -> Callable[[DetectionDataset, Any], Sample]:
    """Reads samples, one of which has no finite pixel."""
    read = DetectionDataset.__getitem__

    def get(self: DetectionDataset, key: Any) -> Sample:
        sample = read(self, key)
        is_it = isinstance(key, tuple) and sample.image_index == index
        return sample._replace(image=sample.image * float("nan")) if is_it else sample

    return get


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_is_skipped(
    accumulate: int, run: Callable[..., TrainingRun], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image that makes it comes once an epoch; batch statistics that saw it would be NaN for good."""
    monkeypatch.setattr(DetectionDataset, "__getitem__", _poisoned(4))
    done = run(batch_norm="train", accumulate=accumulate)
    # Two batches make a step; the third of an epoch, which in the last epoch has the image, is left out.
    assert len(done.report["skipped_steps"]) == (3 if accumulate == 1 else 2)
    identity = json.loads((data / "train.json").read_text())["images"][4]["id"]
    for epoch, message in enumerate(done.report["skipped_steps"]):
        assert message.startswith(f"epoch {epoch}, step ")
        assert "the loss is not finite" in message
        assert str(identity) in message.partition("image ids ")[2]
        assert message.partition("image ids ")[2].count(",") == 1  # the two images of the batch
    assert json.loads((done.folder / "report.json").read_text()) == done.report
    assert _is_finite(done.last)
    assert _is_finite(done.best)


def test_training_goes_on_after_a_loss_that_is_not_finite(
    shapes: ModuleType, run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def first_is_nan(*args: Any) -> Losses:
        calls.append(1)
        losses = matched_loss(*args)
        return losses._replace(total=losses.total * float("nan")) if len(calls) == 1 else losses

    monkeypatch.setattr(training_module, "matched_loss", first_is_nan)
    done = run(epochs=1, ema_decay=0.0)
    assert len(calls) == 3
    assert len(done.report["skipped_steps"]) == 1
    saved, fresh = load_file(done.last), _fresh_state(shapes)
    assert not torch.equal(saved["class_head.predict.pointwise.bias"], fresh["class_head.predict.pointwise.bias"])


def test_only_losses_that_are_not_finite_leave_the_weights_alone(
    shapes: ModuleType, run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_infinite(*args: Any) -> Losses:
        losses = matched_loss(*args)
        return losses._replace(total=losses.total + float("inf"))

    monkeypatch.setattr(training_module, "matched_loss", all_infinite)
    done = run(epochs=1, ema_decay=0.0)
    fresh = _fresh_state(shapes)
    assert len(done.report["skipped_steps"]) == 3
    for name, tensor in load_file(done.last).items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, fresh[name]), name


def test_a_gradient_that_is_not_finite_is_dropped(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def second_overflows_backwards(logits: list[Tensor], *args: Any) -> Losses:
        calls.append(1)
        if len(calls) == 2:
            logits[0].register_hook(lambda gradient: gradient * float("inf"))
        return matched_loss(logits, *args)

    monkeypatch.setattr(training_module, "matched_loss", second_overflows_backwards)
    done = run(epochs=1)
    (message,) = done.report["skipped_steps"]
    assert message.startswith("epoch 0, step 1: the gradient is not finite")
    assert "image ids [" in message
    assert _is_finite(done.last)


def test_only_negatives_train_if_asked_to(shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    negatives = shapes.write_shapes(tmp_path / "negatives", {"train": 4}, with_boxes=())
    with pytest.raises(DataError, match=r"train\.json: not one box to train on \(4 images\).*allow_no_boxes"):
        run(data=negatives)
    done = run(data=negatives, allow_no_boxes=True, epochs=1, ema_decay=0.0)
    assert done.report["skipped_steps"] == []
    assert _is_finite(done.last)


def test_another_backbone_recomputed_in_bfloat16(run: Callable[..., TrainingRun]) -> None:
    done = run(backbone="lite1", gradient_checkpointing=True, precision="bf16", epochs=1)
    network, info = load_checkpoint(done.best)
    assert info.spec.backbone == network.spec.backbone == "lite1"
    assert done.report["skipped_steps"] == []
    assert _is_finite(done.last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_is_fed_from_pinned_memory(workers: int) -> None:
    on_cpu, on_gpu = (training_module.loader_settings(workers, torch.device(name)) for name in ("cpu", "cuda:1"))
    assert on_gpu == {**on_cpu, "pin_memory": True}
    assert not on_cpu["pin_memory"]
    assert on_cpu.get("persistent_workers", False) == (workers > 0)
    assert on_cpu["num_workers"] == workers


# Data sets


def test_without_a_validation_split_the_last_weights_are_the_best(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shapes.write_shapes(tmp_path / "set")
    done = run(data=folder, epochs=1, quiet=False)
    assert done.metrics is None
    assert done.best.read_bytes() == done.last.read_bytes()
    assert done.report["best_ap"] is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: 6 images, ")
    assert lines[1] == "val: none found; nothing is evaluated, and the last weights are kept"
    checks = [line for line in lines if line.startswith("check: warning: ")]
    assert any("classes with very few boxes to train on: 2 classes " in line for line in checks)
    assert lines[2 : 2 + len(checks)] == checks
    rest = lines[2 + len(checks) :]
    assert rest[0] == f"training on cpu, {torch.get_num_threads()} threads, in fp32"
    assert rest[1].startswith("epoch 1/1: loss ")
    assert len(rest) == 2  # nothing of Lightning's


def test_one_annotation_file_is_a_training_split(run: Callable[..., TrainingRun], data: Path) -> None:
    done = run(data=data / "train.json", epochs=1)
    assert done.metrics is None
    assert done.report["val"] is None


def test_a_validation_split_with_other_classes_is_refused(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 2, "val": 2})
    content = json.loads((folder / "val.json").read_text())
    content["categories"][1]["name"] = "triangle"
    (folder / "val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"val\.json: its classes .*triangle.* are not those of .*train\.json.*square"):
        run(data=folder)
    assert not (tmp_path / "run").exists()


def test_a_validation_split_at_fault_is_not_taken_for_none(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 2, "val": 2})
    (folder / "val.json").write_text("{")
    with pytest.raises(DataError, match=r"val\.json"):
        run(data=folder)


def test_a_yaml_file_names_its_validation_split_too(
    run: Callable[..., TrainingRun], tmp_path: Path, data: Path
) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "yolo" / kind / split).mkdir(parents=True)
        for name in "ab":
            shutil.copy(data / "images" / f"{split}1.png", tmp_path / "yolo" / "images" / split / f"{name}.png")
            (tmp_path / "yolo" / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "yolo" / "data.yaml").write_text("names: [disc]\ntrain: images/train\nval: images/val\n")
    done = run(data=tmp_path / "yolo" / "data.yaml", epochs=1)
    assert done.metrics is not None
    shutil.rmtree(tmp_path / "yolo" / "images" / "val")
    with pytest.raises(DataError, match=r"data\.yaml, field 'val': there is no folder"):
        run(data=tmp_path / "yolo" / "data.yaml", epochs=1, out=tmp_path / "again")
    (tmp_path / "yolo" / "data.yaml").write_text("names: [disc]\ntrain: images/train\n")
    assert run(data=tmp_path / "yolo" / "data.yaml", epochs=1, out=tmp_path / "again").metrics is None


def test_a_batch_of_which_no_norm_can_take_statistics_is_refused(run: Callable[..., TrainingRun]) -> None:
    with pytest.raises(SettingError, match="a batch of one image at image_size 64"):
        run(batch_size=1)


def test_a_validation_split_without_boxes(shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 2, "val": 2}, with_boxes=("train",))
    done = run(data=folder, epochs=2)
    assert done.metrics is not None
    assert done.metrics.ap == -1
    assert done.best.read_bytes() == done.last.read_bytes()


def test_fewer_images_than_a_batch(shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 2})
    assert _is_finite(run(data=folder, batch_size=16, accumulate=3, epochs=1).last)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_without_a_traceback(
    workers: int, shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 2})
    broken = folder / "images" / "train2.png"
    broken.write_bytes(broken.read_bytes()[:120])  # the header is whole: only decoding shows it
    with pytest.raises(ImageError) as caught:
        run(data=folder, workers=workers, cache=False)
    assert str(broken) in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_loader_process_that_is_killed_is_named_with_what_to_do(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    get, parent = DetectionDataset.__getitem__, os.getpid()

    def killed(self: DetectionDataset, key: Any) -> Sample:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, key)

    monkeypatch.setattr(DetectionDataset, "__getitem__", killed)
    with pytest.raises(SettingError, match=r"a process that loads images died .*--workers 0"):
        run(workers=1)


def test_an_image_that_changes_its_size_during_the_run_is_named(
    run: Callable[..., TrainingRun], shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 2})
    step = DetectionModule.training_step

    def replacing(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        Image.new("RGB", (7, 5)).save(folder / "images" / "train1.png")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", replacing)
    with pytest.raises(ImageError, match=r"train1\.png: 7x5 pixels, but .* when the dataset was read"):
        run(data=folder, cache=False)


def _shrink(folder: Path, count: int) -> None:
    content = json.loads((folder / "train.json").read_text())
    for annotation in content["annotations"][:count]:
        annotation["bbox"][2] = 0.4
    (folder / "train.json").write_text(json.dumps(content))


def test_boxes_too_small_for_the_input_are_counted(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 4})
    _shrink(folder, 2)
    done = run(data=folder, epochs=1, quiet=False)
    boxes = done.report["train"]["boxes"]
    assert done.report["train"]["boxes too small for this image size"] == 2
    said = f"train: 2 of {boxes} boxes are less than a pixel wide or high at image_size 64 and are never trained on"
    assert said in capsys.readouterr().err
    _shrink(folder, boxes)
    with pytest.raises(DataError, match=rf"train\.json: {boxes} of {boxes} boxes .* use a larger image_size"):
        run(data=folder, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_images_with_nothing_but_crowds_are_counted(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 4})
    content = json.loads((folder / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == 2)
    (folder / "train.json").write_text(json.dumps(content))
    done = run(data=folder, epochs=1, quiet=False)
    assert done.report["train"]["images with ignored regions only, not trained on"] == 1
    assert "1 images with ignored regions only, not trained on" in capsys.readouterr().err


# Where a run starts from


def test_weights_with_other_classes_lose_their_last_layer(
    shapes: ModuleType, run: Callable[..., TrainingRun], trained: TrainingRun, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = shapes.write_shapes(tmp_path / "set", {"train": 2}, classes=("cat", "dog"))
    done = run(data=folder, weights=trained.best, epochs=1, learning_rate=1e-12, ema_decay=0.0, quiet=False)
    said = capsys.readouterr().err
    dropped = ("class_head.predict.pointwise.weight", "class_head.predict.pointwise.bias")
    assert "its classes differ, so these start afresh: " + ", ".join(dropped) in said
    before, after, fresh = load_file(trained.best), load_file(done.last), _fresh_state(shapes)
    assert load(done.best, device="cpu").class_names == ("cat", "dog")
    for name in before:
        expected = fresh[name] if name in dropped else before[name]
        if not name.endswith((*STATISTICS, "num_batches_tracked")):
            torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-6, msg=name)


def test_weights_with_the_same_classes_keep_it(
    run: Callable[..., TrainingRun], trained: TrainingRun, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(weights=trained.best, epochs=1, learning_rate=1e-12, ema_decay=0.0, quiet=False)
    assert "afresh" not in capsys.readouterr().err
    name = "class_head.predict.pointwise.weight"
    torch.testing.assert_close(load_file(done.last)[name], load_file(trained.best)[name], rtol=0, atol=1e-6)


def test_weights_of_another_network_are_refused(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    wider = dataclasses.replace(shapes.TINY, width=24)
    model = create_model(wider, 2)
    info = CheckpointInfo(wider, ("disc", "square"), (3, 7), default_preprocessing(wider))
    save_checkpoint(tmp_path / "wider.safetensors", model.state_dict(), info)
    with pytest.raises(WeightsError, match=r"(?s)wider\.safetensors: .*class_head\.predict\.pointwise\.weight"):
        run(weights=tmp_path / "wider.safetensors")
    assert not (tmp_path / "run").exists()


# Settings


def test_unknown_settings_are_listed(run: Callable[..., TrainingRun]) -> None:
    with pytest.raises(SettingError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        run(epoch=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda", "devices": 99}, "device cuda with devices 99: this machine has "),
        ({"device": "mps", "devices": 2}, "device mps with devices 2: this machine has "),
        ({"device": "cpu", "devices": 10**6}, "device cpu with devices 1000000: this machine has "),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    settings: dict[str, Any], message: str, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        run(**settings)
    assert not (tmp_path / "run").exists()


def test_half_floats_without_a_gpu_are_refused(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="fp16 needs a GPU, and there is none here"):
        run(device="auto", precision="fp16")


def test_a_folder_in_use_is_refused(run: Callable[..., TrainingRun], trained: TrainingRun) -> None:
    before = {path: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()}
    with pytest.raises(SettingError, match="holds a run already; resume it, or choose another folder"):
        run(out=trained.folder)
    assert before == {path: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()}


def test_the_next_free_number_is_the_folder(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/1").mkdir(parents=True)
    assert run(out=None, epochs=1).folder == Path("runs/2")


# Resuming; that it ends with the same weights is shown with real kills in tests/end_to_end


class _StoppedError(Exception):
    pass


def _stop_before(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make training stop before the step of this number, counted from 0."""
    step, seen = DetectionModule.training_step, []

    def stopping(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        if len(seen) == number:
            raise _StoppedError
        seen.append(batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", stopping)


def test_nothing_to_resume(run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no run to resume there \(config\.json is missing\)"):
        run(resume=True)
    with pytest.raises(SettingError, match="resume needs out"):
        run(resume=True, out=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"learning_rate": 0.5, "flip": 0.1}, "learning_rate was None, now 0.5, flip was 0.5, now 0.1"),
        ({"weights": "best.safetensors"}, "weights was None, now 'best.safetensors'"),
    ],
)
def test_a_run_is_resumed_with_its_own_settings(
    settings: dict[str, Any], message: str, run: Callable[..., TrainingRun], trained: TrainingRun
) -> None:
    own = {"ema_decay": 0.5, "frozen_stages": 2, "batch_norm": "frozen", "evaluate_every": 2}
    with pytest.raises(SettingError) as caught:
        run(out=trained.folder, resume=True, **{**own, **settings})
    assert f"{trained.folder}: the run was started with other settings: " in str(caught.value)
    assert message in str(caught.value)


def test_a_run_is_resumed_with_its_own_model_and_classes(
    shapes: ModuleType, run: Callable[..., TrainingRun], trained: TrainingRun, tmp_path: Path
) -> None:
    own = {"ema_decay": 0.5, "frozen_stages": 2, "batch_norm": "frozen", "evaluate_every": 2}
    with pytest.raises(SettingError, match="model head_depth was 1, now 2"):
        run(out=trained.folder, resume=True, model=dataclasses.replace(shapes.TINY, head_depth=2), **own)
    other = shapes.write_shapes(tmp_path / "shapes", {"train": 2, "val": 2}, classes=("cat", "dog"))
    with pytest.raises(SettingError, match="class_names was "):
        run(out=trained.folder, resume=True, data=other, **own)


def test_a_run_is_not_resumed_on_other_data(
    shapes: ModuleType, run: Callable[..., TrainingRun], trained: TrainingRun, data: Path, tmp_path: Path
) -> None:
    own = {"ema_decay": 0.5, "frozen_stages": 2, "batch_norm": "frozen", "evaluate_every": 2}
    shutil.copytree(data, tmp_path / "shapes")
    content = json.loads((data / "val.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (tmp_path / "shapes" / "val.json").write_text(json.dumps(content))
    count = len(content["annotations"])
    with pytest.raises(SettingError) as caught:
        run(out=trained.folder, resume=True, data=tmp_path / "shapes", **own)
    said = f"{trained.folder}: the dataset has changed since the run was started: val boxes are {count} as before, but "
    assert str(caught.value) == said + "others"
    shutil.copy(data / "val.json", tmp_path / "shapes" / "val.json")
    content = json.loads((data / "train.json").read_text())
    content["images"].append({**content["images"][0], "id": 99})
    (tmp_path / "shapes" / "train.json").write_text(json.dumps(content))
    with pytest.raises(SettingError, match="changed since the run was started: train images were 6, now 7"):
        run(out=trained.folder, resume=True, data=tmp_path / "shapes", **own)


def test_a_damaged_state_is_named_and_the_save_before_it_taken(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole = run(out=tmp_path / "whole", save_every=1)
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, 5)
        run(out=tmp_path / "parts", save_every=1)
    path = tmp_path / "parts" / "resume.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    parts = run(out=tmp_path / "parts", resume=True, quiet=False, save_every=1)
    assert f"{path}: damaged (" in capsys.readouterr().err
    assert parts.last.read_bytes() == whole.last.read_bytes()
    assert _log(parts) == _log(whole)


def test_a_state_of_another_kind_is_no_foreign_error(
    run: Callable[..., TrainingRun], trained: TrainingRun, tmp_path: Path
) -> None:
    own = {"ema_decay": 0.5, "frozen_stages": 2, "batch_norm": "frozen", "evaluate_every": 2}
    shutil.copytree(trained.folder, tmp_path / "copy")
    torch.save({"global_step": 3}, tmp_path / "copy" / "resume.ckpt")
    with pytest.raises(SettingError, match=r"resume\.ckpt: cannot be resumed from \("):
        run(out=tmp_path / "copy", resume=True, **own)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("place", ["training_step", "validation_step"])
def test_a_signal_ends_the_run_with_its_state_saved(
    place: str, number: signal.Signals, error: type[BaseException], run: Callable[..., TrainingRun], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, trained: TrainingRun,
) -> None:  # fmt: skip
    settings = {"ema_decay": 0.5, "frozen_stages": 2, "batch_norm": "frozen", "evaluate_every": 2, "save_every": 99}
    step, calls = getattr(DetectionModule, place), []

    def signaled(self: DetectionModule, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
        return step(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(error, match=r"--out .*run --resume"):
        patched.setattr(DetectionModule, place, signaled)
        run(**settings)
    assert len(calls) == 2
    saved = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    assert saved["global_step"] == (2 if place == "training_step" else 6)
    resumed, expected = load_file(run(resume=True, **settings).last), load_file(trained.last)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


def test_a_signal_after_the_last_step_ends_the_run_complete(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = SaveCheckpoints.finish

    def signaled(self: SaveCheckpoints, module: DetectionModule) -> TrainingRun:
        signal.raise_signal(signal.SIGTERM)
        return finish(self, module)

    monkeypatch.setattr(SaveCheckpoints, "finish", signaled)
    with pytest.raises(Terminated):
        run(epochs=1)
    assert (tmp_path / "run" / "report.json").is_file()


def test_a_finished_run_is_resumed_to_its_own_end(
    shapes: ModuleType, run: Callable[..., TrainingRun], trained: TrainingRun, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained.folder, copy)
    again = run(out=copy, resume=True, ema_decay=0.5, frozen_stages=2, batch_norm="frozen", evaluate_every=2)
    assert again.last.read_bytes() == trained.last.read_bytes()
    assert again.best.read_bytes() == trained.best.read_bytes()
    assert again.report == trained.report
    assert again.metrics == trained.metrics


@pytest.mark.slow
def test_a_resumed_run_needs_no_settings(
    shapes: ModuleType, run: Callable[..., TrainingRun], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"seed": 3, "save_every": 1, "scale_jitter": (0.8, 1.2), "loss": LossSettings(gamma=2.0)}
    whole = run(out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, 4)
        run(out=tmp_path / "parts", **settings)
    parts = train(shapes.TINY, data, out=tmp_path / "parts", resume=True, quiet=True, workers=1)
    assert load_file(parts.last).keys() == load_file(whole.last).keys()
    for name, tensor in load_file(whole.last).items():
        assert torch.equal(load_file(parts.last)[name], tensor), name


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}', '{"config": {"epochs": 0}, "checkpoint": {}}'])
def test_a_damaged_settings_file_is_named(content: str, run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(SettingError, match=r"config\.json: damaged, so the run cannot be resumed"):
        run(resume=True)


def test_a_run_trains_with_the_resizing_of_its_starting_weights(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    official = dataclasses.replace(default_preprocessing(shapes.TINY), resize="official")
    info = CheckpointInfo(shapes.TINY, ("disc", "square"), (3, 7), official)
    save_checkpoint(tmp_path / "official.safetensors", create_model(shapes.TINY, 2).state_dict(), info)
    resized: list[str] = []
    original = augment_module.resize

    def recorded(image: Any, size: Any, method: str, box: Any) -> Any:
        resized.append(method)
        return original(image, size, method, box)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(augment_module, "resize", recorded)
        done = run(weights=tmp_path / "official.safetensors", epochs=1)
    assert set(resized) == {"official"}
    assert load(done.best, device="cpu").info.preprocessing == official


@pytest.mark.slow
def test_a_resumed_run_keeps_its_log_and_what_it_skipped(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DetectionDataset, "__getitem__", _poisoned(4))
    settings = {"epochs": 8, "save_every": 1}
    whole = run(out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, 14)
        run(out=tmp_path / "parts", **settings)
    parts = run(out=tmp_path / "parts", resume=True, **settings)
    assert len(_log(whole)) == 8 + 8  # one evaluation an epoch, and its losses
    assert _log(parts) == _log(whole)
    assert len(whole.report["skipped_steps"]) == 8
    assert parts.report == whole.report
    assert parts.last.read_bytes() == whole.last.read_bytes()


def test_a_run_that_saved_nothing_is_begun_again(
    run: Callable[..., TrainingRun], trained: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"weights": trained.best, "epochs": 1, "save_every": 99}
    whole = run(out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, 1)
        run(out=tmp_path / "parts", **settings)
    assert not (tmp_path / "parts" / "resume.ckpt").exists()
    parts = run(out=tmp_path / "parts", resume=True, **settings)
    assert parts.last.read_bytes() == whole.last.read_bytes()


def test_a_resumed_run_keeps_the_anchors_and_the_preprocessing_of_its_starting_weights(
    shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(shapes.TINY, aspects=((1.0, 1.0), (1.5, 0.75), (0.75, 1.5)))
    info = CheckpointInfo(spec, ("disc", "square"), (3, 7), IMAGENET)
    assert default_preprocessing(spec) != IMAGENET
    save_checkpoint(tmp_path / "other.safetensors", create_model(spec, 2).state_dict(), info)
    settings = {"weights": tmp_path / "other.safetensors", "save_every": 1}
    whole = run(out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, 4)
        run(out=tmp_path / "parts", **settings)
    parts = run(out=tmp_path / "parts", resume=True, **settings)
    assert parts.last.read_bytes() == whole.last.read_bytes()
    assert load(parts.last, device="cpu").info.spec.aspects == spec.aspects
    assert load(parts.last, device="cpu").info.preprocessing == IMAGENET


def test_anchors_that_were_asked_for_travel_with_the_weights(run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    def spec_of(run: TrainingRun) -> tuple[float, list[float]]:
        spec = load(run.last, device="cpu").info.spec
        return spec.anchor_scale, [round(width / height, 6) for width, height in spec.aspects]

    first = run(out=tmp_path / "first", epochs=1, anchor_scale=2.0, aspects=(0.5, 1.0, 3.0))
    assert spec_of(first) == (2.0, [0.5, 1.0, 3.0])
    kept = run(out=tmp_path / "kept", epochs=1, weights=first.last)
    assert spec_of(kept) == (2.0, [0.5, 1.0, 3.0])
    other = run(out=tmp_path / "other", epochs=1, weights=first.last, anchor_scale=1.5)
    assert spec_of(other) == (1.5, [0.5, 1.0, 3.0])
    assert first.last.read_bytes() != run(out=tmp_path / "plain", epochs=1).last.read_bytes()
    with pytest.raises(SettingError, match="aspects has 2 values.*outputs for 3; give 3"):
        run(out=tmp_path / "fewer", weights=first.last, aspects=(0.5, 2.0))


@pytest.mark.slow
def test_a_resumed_run_keeps_the_anchors_that_were_asked_for(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"anchor_scale": 2.0, "aspects": (0.5, 1.0, 3.0), "save_every": 1}
    whole = run(out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, 4)
        run(out=tmp_path / "parts", **settings)
    parts = run(out=tmp_path / "parts", resume=True, **settings)
    assert parts.last.read_bytes() == whole.last.read_bytes()


def test_task_alignment_follows_atss_at_the_same_step_in_a_resumed_run(
    run: Callable[..., TrainingRun], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps on two images each: by ATSS until 1.2. Evaluations are by task alignment from the first on."""
    calls: list[str] = []
    for name in ("match_atss", "match_task_aligned"):
        real = getattr(training_module, name)

        def noted(*arguments: Any, name: str = name, real: Any = real, **others: Any) -> Any:
            calls.append(name)
            return real(*arguments, **others)

        monkeypatch.setattr(training_module, name, noted)
    settings = {"assignment": "task-aligned", "box_loss": "giou", "epochs": 2, "best_metric": "loss", "ema_decay": 0.5}
    whole = run(out=tmp_path / "whole", **settings)
    assert calls == ["match_atss"] * 2 * 2 + ["match_task_aligned"] * (2 + 4 + 6 + 4)
    losses = [float(row["val/loss"]) for row in _log(whole) if "val/loss" in row]
    assert len(losses) == 2 and all(0 < loss < 1000 for loss in losses)
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, 1)
        run(save_every=1, **settings)
    calls.clear()
    resumed = load_file(run(resume=True, save_every=1, **settings).last)
    assert calls == ["match_atss"] * 2 + ["match_task_aligned"] * (2 + 4 + 6 + 4)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in load_file(whole.last).items())
    calls.clear()
    monkeypatch.setattr(Pace, "position", lambda self, step: 2.0 * step)  # walked faster, to end in time
    run(out=tmp_path / "faster", data=data / "train.json", **{**settings, "best_metric": "ap"})
    assert calls == ["match_atss"] * 2 + ["match_task_aligned"] * 2 * 5


def test_a_resumed_run_can_have_more_epochs(
    run: Callable[..., TrainingRun], trained: TrainingRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.folder, tmp_path / "copy")
    own = {"ema_decay": 0.5, "frozen_stages": 2, "batch_norm": "frozen", "evaluate_every": 2, "quiet": False}
    more = run(out=tmp_path / "copy", resume=True, epochs=5, **own)
    said = capsys.readouterr().err
    assert "resumed with epochs 5 instead of 3: the weights will not be those of an uninterrupted run" in said
    assert "epoch 4/5: loss " in said
    assert "epoch 3/" not in said
    assert more.report["best_epoch"] is not None
    assert load(more.last, device="cpu").info.training["epochs"] == 5
    again = run(out=tmp_path / "copy", resume=True, **{**own, "epochs": 5})  # the settings were kept
    assert "resumed with" not in capsys.readouterr().err
    assert again.last.read_bytes() == more.last.read_bytes()
    with pytest.raises(SettingError, match="epochs was 5, now 2; a resumed run can only have more"):
        run(out=tmp_path / "copy", resume=True, **{**own, "epochs": 2})


@pytest.mark.parametrize("stopped_at", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_a_resumed_run_can_take_its_steps_in_smaller_batches(
    stopped_at: int, shapes: ModuleType, run: Callable[..., TrainingRun], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = shapes.write_shapes(tmp_path / "set", {"train": 17, "val": 2})
    settings: dict[str, Any] = {"data": folder, "batch_size": 4, "save_every": 1, "batch_norm": "frozen"}
    seen: list[list[int]] = []
    step = DetectionModule.training_step

    def recorded(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        seen.append(batch.indices.tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", recorded)
    run(out=tmp_path / "whole", **settings)
    whole, seen = seen, []
    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        _stop_before(patched, stopped_at)
        run(**settings)
    first = list(seen)
    seen.clear()
    done = run(resume=True, **{**settings, "batch_size": 2, "quiet": False})
    assert "batch_size 2 instead of 4, accumulate 2 instead of 1" in capsys.readouterr().err
    pairs = [seen[i] + seen[i + 1] for i in range(0, len(seen), 2)]
    assert first + pairs == whole
    assert _is_finite(done.last)
    with pytest.raises(SettingError, match="a step sees 4 images, which batch_size 3 on 1 devices cannot give"):
        run(resume=True, **{**settings, "batch_size": 3})


# Which checkpoint is best, and when a run ends


def _evaluations(monkeypatch: pytest.MonkeyPatch, **values: list[float]) -> None:
    """Evaluations that find these values, one after the other."""
    end = DetectionModule.on_validation_epoch_end
    count = iter(range(1000))

    def found(self: DetectionModule) -> None:
        end(self)
        number = next(count)
        assert self.metrics is not None
        chosen = {name: given[number] for name, given in values.items()}
        if "loss" in chosen:
            self.val_loss = chosen.pop("loss")
        self.metrics = dataclasses.replace(self.metrics, **chosen)

    monkeypatch.setattr(DetectionModule, "on_validation_epoch_end", found)


@pytest.mark.parametrize(
    ("metric", "best"), [("ap", 2), ("ap50", 1), ("loss", 3), ("ar100", 4), ("ap75", 4)]
)  # fmt: skip
def test_the_best_checkpoint_is_chosen_by_the_metric_that_is_named(
    metric: str, best: int, run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    _evaluations(
        monkeypatch, ap=[0.1, 0.4, 0.3, 0.2], ap50=[0.9, 0.5, 0.5, 0.6], loss=[4.0, 3.0, 1.0, 2.0],
        ar100=[0.1, 0.2, 0.3, 0.4], ap75=[0.5, 0.2, 0.3, 0.5],
    )  # fmt: skip
    done = run(epochs=4, best_metric=metric)
    assert done.report["best_epoch"] == best
    assert done.report["best_ap"] == [0.1, 0.4, 0.3, 0.2][best - 1]
    assert load(done.best, device="cpu").info.metrics["ap"] == done.report["best_ap"]


def test_the_loss_of_an_evaluation_is_that_of_its_images(run: Callable[..., TrainingRun]) -> None:
    done = run(epochs=2, best_metric="loss", batch_size=3)
    logged = [float(row["val/loss"]) for row in _log(done) if "val/loss" in row]
    assert len(logged) == 2
    assert all(0 < loss < 1000 for loss in logged)
    assert done.report["best_epoch"] == 1 + logged.index(min(logged))


def test_a_run_ends_when_its_patience_does(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patched:
        _evaluations(patched, ap=[0.1, 0.3, 0.2, 0.3, 0.1, 0.0, 0.0, 0.0])
        done = run(epochs=8, patience=2, quiet=False)
    said = capsys.readouterr().err
    assert "no better ap in 2 evaluations: the run ends; the best was epoch 4" in said  # as good counts as the best
    assert "epoch 5/8" not in said
    assert done.report["best_epoch"] == 4
    before = done.last.read_bytes()
    assert run(resume=True, epochs=8, patience=2).last.read_bytes() == before  # and stays ended


def test_evaluating_some_images(run: Callable[..., TrainingRun]) -> None:
    done = run(epochs=1, evaluate_images=2)
    assert done.metrics is not None
    assert done.metrics.images == 2
    assert done.report["val"]["images"] == 2
    assert load(done.best, device="cpu").info.metrics["data"] == "shapes, val (2 images)"


def test_a_setting_without_effect_leaves_no_folder(run: Callable[..., TrainingRun], data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="patience is 2 but has no effect: there is no validation split"):
        run(data=data / "train.json", patience=2)
    assert not (tmp_path / "run").exists()


def test_a_save_that_is_interrupted_leaves_the_one_before(
    run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_every": 2}
    whole = run(out=tmp_path / "whole", **settings)
    save = Trainer.save_checkpoint

    def interrupted(self: Trainer, path: Path) -> None:
        if self.global_step == 4:
            path.write_bytes(b"half a file")
            raise _StoppedError
        save(self, path)

    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        patched.setattr(Trainer, "save_checkpoint", interrupted)
        run(out=tmp_path / "parts", **settings)
    parts = run(out=tmp_path / "parts", resume=True, **settings)
    assert parts.last.read_bytes() == whole.last.read_bytes()
