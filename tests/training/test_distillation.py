"""A teacher: the distance from its outputs, what it must share with the student, and that it is in no file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import Tensor

from efficientdet.errors import SettingError
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.images.letterbox import IMAGENET, LITE
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.efficientnet import SCALES
from efficientdet.training import device
from efficientdet.training.config import TrainConfig
from efficientdet.training.distillation import Teacher, quality_focal
from efficientdet.training.module import DetectionModule
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun
from efficientdet.weights.checkpoint import load_checkpoint, read_info, save_checkpoint
from efficientdet.weights.create import create_model
from efficientdet.weights.names import find_weights

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def data(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 8, "val": 3})
    return folder


@pytest.fixture(scope="module")
def larger(shapes: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    spec = dataclasses.replace(shapes.TINY, name="larger", width=24, depth=2)
    return train(spec, data, out=tmp_path_factory.mktemp("run") / "teacher", **{**shapes.SETTINGS, "epochs": 1})


def _network(shapes: ModuleType, classes: int = 2, seed: int = 0, **changes: Any) -> EfficientDet:
    torch.manual_seed(seed)
    network = create_model(dataclasses.replace(shapes.TINY, **changes), classes)
    with torch.no_grad():  # scores of all sizes
        network.class_head.predict.pointwise.bias.zero_()
        network.class_head.predict.pointwise.weight.mul_(5)
    return network.eval()


def _has_box(class_logits: list[Tensor]) -> Tensor:
    return torch.zeros(2, sum(x.shape[1] for x in class_logits), dtype=torch.bool)


# The loss


def test_the_quality_focal_loss_is_the_papers() -> None:
    logits, targets = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.1, 0.9, 0.0])
    p = logits.sigmoid()
    entropy = -(targets * p.log() + (1 - targets) * (1 - p).log())
    torch.testing.assert_close(quality_focal(logits, targets), (targets - p).abs() * entropy)


def test_who_agrees_with_the_teacher_loses_nothing(shapes: ModuleType) -> None:
    network = _network(shapes)
    teacher = Teacher(_network(shapes), LITE, LITE, range(2), range(2))
    class_logits, box_deltas = network(IMAGES)
    assert teacher.loss(IMAGES, class_logits, box_deltas, _has_box(class_logits)).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_draws_classes_and_boxes_to_the_teachers(shapes: ModuleType) -> None:
    student, teacher = _network(shapes, seed=1), Teacher(_network(shapes), LITE, LITE, range(2), range(2))
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    optimizer, losses = torch.optim.Adam(student.parameters(), 1e-3), []
    for _ in range(90):
        class_logits, box_deltas = student(IMAGES)
        losses.append(teacher.loss(IMAGES, class_logits, box_deltas, _has_box(class_logits)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < losses[0].item() / 2
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())


def test_classes_are_compared_by_name_in_whatever_order(shapes: ModuleType) -> None:
    teacher = Teacher(_network(shapes), LITE, LITE, (1, 0), range(2))
    class_logits, box_deltas = teacher.predict(IMAGES)
    turned = [logits.flip(2) for logits in class_logits]
    assert teacher.loss(IMAGES, turned, box_deltas, _has_box(turned)).item() == pytest.approx(0, abs=1e-6)
    assert teacher.loss(IMAGES, class_logits, box_deltas, _has_box(turned)).item() > 0.01


def test_a_teacher_sees_pixels_in_its_own_normalization(shapes: ModuleType) -> None:
    network = _network(shapes)
    teacher = Teacher(network, LITE, IMAGENET, range(2), range(2))
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    ours, theirs = (
        (pixels - torch.tensor(one.mean).reshape(3, 1, 1)) / torch.tensor(one.std).reshape(3, 1, 1)
        for one in (IMAGENET, LITE)
    )
    for given, expected in zip(teacher.predict(ours)[0], network(theirs)[0], strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


def test_boxes_of_the_dataset_are_left_to_it(shapes: ModuleType) -> None:
    """Where only kept classes are taught, anchors with a box do not learn the teacher's box."""
    teacher = Teacher(_network(shapes), LITE, LITE, (0,), (0,), dataset_classes=(1,))
    class_logits, box_deltas = teacher.predict(IMAGES)
    moved = [deltas + 1 for deltas in box_deltas]
    nowhere = _has_box(class_logits)
    assert teacher.loss(IMAGES, class_logits, moved, nowhere).item() > 1
    assert teacher.loss(IMAGES, class_logits, moved, ~nowhere).item() == pytest.approx(0, abs=1e-6)


# In a run


def test_a_student_learns_from_a_larger_member(
    larger: TrainingRun, data: Path, shapes: ModuleType, tmp_path: Path
) -> None:
    settings = {**shapes.SETTINGS, "teacher": larger.best, "accumulate": 2}
    with_it = train(shapes.TINY, data, out=tmp_path / "with", **settings)
    without = train(shapes.TINY, data, out=tmp_path / "without", **{**settings, "teacher": None})
    taught, alone = load_file(with_it.last), load_file(without.last)
    assert taught.keys() == alone.keys()
    assert not torch.equal(taught["class_head.predict.pointwise.bias"], alone["class_head.predict.pointwise.bias"])
    assert read_info(with_it.best).training["teacher"] == str(larger.best)
    state = torch.load(with_it.folder / "resume.ckpt", weights_only=True)
    plain = torch.load(without.folder / "resume.ckpt", weights_only=True)
    assert state["state_dict"].keys() == plain["state_dict"].keys()
    assert (with_it.folder / "resume.ckpt").stat().st_size < 1.1 * (without.folder / "resume.ckpt").stat().st_size


@pytest.mark.slow
def test_a_resumed_student_still_has_its_teacher(
    larger: TrainingRun, data: Path, shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**shapes.SETTINGS, "teacher": larger.best}
    whole = train(shapes.TINY, data, out=tmp_path / "whole", **settings)
    epoch_end = DetectionModule.on_train_epoch_start

    def crash(self: DetectionModule) -> None:
        epoch_end(self)
        if self.current_epoch == 1:
            raise KeyError("crash")

    with monkeypatch.context() as patched:
        patched.setattr(DetectionModule, "on_train_epoch_start", crash)
        with pytest.raises(KeyError, match="crash"):
            train(shapes.TINY, data, out=tmp_path / "run", **settings)
    resumed = train(shapes.TINY, data, out=tmp_path / "run", resume=True, quiet=True)
    expected = load_file(whole.last)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(resumed.last).items())


def test_a_teacher_of_other_classes_is_refused(larger: TrainingRun, shapes: ModuleType, tmp_path: Path) -> None:
    other = shapes.write_shapes(tmp_path / "set", {"train": 4}, classes=("disc", "star"))
    message = r"teacher .*: its classes are \['disc', 'square'\], the dataset's are \['disc', 'star'\]"
    with pytest.raises(SettingError, match=message):
        train(shapes.TINY, other, out=tmp_path / "run", teacher=larger.best, **shapes.SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"octaves": 2}, "octaves 3 instead of 2"), ({"anchor_scale": 4.0}, "anchor_scale 3.0 instead of 4.0")],
)
def test_a_teacher_with_other_anchors_is_refused(
    change: dict[str, Any], message: str, larger: TrainingRun, data: Path, shapes: ModuleType, tmp_path: Path
) -> None:
    spec = dataclasses.replace(shapes.TINY, **change)
    with pytest.raises(SettingError, match=rf"its anchors are not the student's \({message}\)"):
        train(spec, data, out=tmp_path / "run", teacher=larger.best, **shapes.SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_classes": True}, "keep_classes keeps the classes of weights; give weights too"),
        ({"keep_classes": True, "weights": "people", "teacher": "d2"}, "makes the old weights the teacher"),
        ({"distill_weight": 2.0}, "distill_weight has no effect without teacher or keep_classes"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TrainConfig(**settings)


# More classes


def test_new_classes_leave_the_old_ones_alone(
    data: Path, shapes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the teacher, no gradient reaches the old classes: what the dataset leaves out is not background."""
    old = train(shapes.TINY, data, out=tmp_path / "old", **{**shapes.SETTINGS, "epochs": 1})
    new = shapes.write_shapes(tmp_path / "set", {"train": 6, "val": 2}, classes=("square", "star"), seed=1)
    settings = {**shapes.SETTINGS, "weights": old.best, "keep_classes": True, "weight_decay": 0.0, "ema_decay": 0.0}
    done = train(shapes.TINY, new, out=tmp_path / "new", **{**settings, "distill_weight": 0.0, "quiet": False})
    said = capsys.readouterr().err
    assert "kept classes of " in said and ": disc; they have no boxes here, so AP is of the others" in said
    assert "start afresh" not in said
    info = read_info(done.best)
    assert info.class_names == ("disc", "square", "star")
    assert info.category_ids[:2] == (3, 7) and len(set(info.category_ids)) == 3
    before, after = (load_file(run.last) for run in (old, done))
    for name in ("class_head.predict.pointwise.weight", "class_head.predict.pointwise.bias"):
        mine, theirs = after[name].unflatten(0, (-1, 3)), before[name].unflatten(0, (-1, 2))
        assert torch.equal(mine[:, 0], theirs[:, 0])  # disc: as it was
        assert not torch.equal(mine[:, 1], theirs[:, 1])  # square: the dataset has it
    assert done.metrics is not None
    assert done.metrics.per_class.keys() == {"disc", "square", "star"}
    assert done.metrics.per_class["disc"] is None  # no boxes here
    # By default the old detector teaches, whatever the assignment.
    settings |= {"assignment": "task-aligned", "box_loss": "giou"}
    taught = train(shapes.TINY, new, out=tmp_path / "taught", **settings)
    bias = load_file(taught.last)["class_head.predict.pointwise.bias"].unflatten(0, (-1, 3))
    assert not torch.equal(bias[:, 0], before["class_head.predict.pointwise.bias"].unflatten(0, (-1, 2))[:, 0])
    network, _ = load_checkpoint(taught.best)
    assert network.num_classes == 3


def test_nothing_to_keep_is_an_error(data: Path, shapes: ModuleType, tmp_path: Path) -> None:
    old = train(shapes.TINY, data, out=tmp_path / "old", **{**shapes.SETTINGS, "epochs": 1})
    with pytest.raises(
        SettingError, match=r"has all classes of the weights \(disc, square\), so there is none to keep"
    ):
        train(shapes.TINY, data, out=tmp_path / "new", weights=old.best, keep_classes=True, **shapes.SETTINGS)


@pytest.mark.slow
def test_two_devices_share_a_teacher(
    larger: TrainingRun, data: Path, shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    in_each_process: Callable[[str], Callback],
) -> None:  # fmt: skip
    # In float64: a fresh network with batch statistics makes a percent of a rounding.
    code = (
        "from efficientdet.network.efficientnet import SCALES\n"
        f"SCALES[{shapes.TINY.backbone!r}] = {SCALES[shapes.TINY.backbone]}\n"
        "from efficientdet.training import device\n"
        "from efficientdet.training.module import DetectionModule\n"
        "device.LIGHTNING_PRECISIONS['fp32'] = '64-true'\n"
        "log = DetectionModule.log\n"
        "def recorded(self, name, value, **options):\n"
        "    if name in ('loss', 'train/distill_loss') and self.global_rank == 0:\n"
        f"        with open({str(tmp_path / 'losses')!r}, 'a') as file:\n"
        "            print(float(value), file=file)\n"
        "    log(self, name, value, **options)\n"
        "DetectionModule.log = recorded\n"
    )
    own = {"epochs": 1, "ema_decay": 0.0, "learning_rate": 1e-4, "teacher": larger.best}
    for devices, batch_size in ((1, 4), (2, 2)):
        settings = {**shapes.SETTINGS, **own, "batch_size": batch_size, "devices": devices}
        with monkeypatch.context() as patched:
            if devices == 1:
                patched.setitem(device.LIGHTNING_PRECISIONS, "fp32", "32-true")  # back after the run, both
                patched.setattr(DetectionModule, "log", DetectionModule.log)
                exec(code, {})
            settings["callbacks"] = [in_each_process(code)]
            train(shapes.TINY, data / "train.json", out=tmp_path / str(devices), **settings)
    losses = [float(line) for line in (tmp_path / "losses").read_text().splitlines()]
    assert len(losses) == 2 * 2 * 2
    assert losses[4:] == pytest.approx(losses[:4], rel=1e-4)


def _part(source: Path, target: Path, images: slice, classes: tuple[str, ...], split: str, file: str) -> None:
    """Some images of a split of `cells`, with the boxes of some classes only."""
    content = json.loads((source / file).read_text())
    content["images"] = content["images"][images]
    ids = {image["id"] for image in content["images"]}
    content["categories"] = [one for one in content["categories"] if one["name"] in classes]
    known = {one["id"] for one in content["categories"]}
    content["annotations"] = [
        one for one in content["annotations"] if one["image_id"] in ids and one["category_id"] in known
    ]
    (target / "images").mkdir(parents=True, exist_ok=True)
    (target / f"{split}.json").write_text(json.dumps(content))
    for image in content["images"]:
        shutil.copy(source / "images" / image["file_name"], target / "images")


@pytest.mark.slow
def test_a_detector_of_cells_learns_platelets_and_keeps_the_others(shared_data: Path, tmp_path: Path) -> None:
    """The bundled detector without its third class learns that anew, from images with boxes of that class alone."""
    cells, old_classes = shared_data / "cells", ("RBC", "WBC")
    _part(cells, tmp_path / "new", slice(0, 48), ("Platelets",), "train", "train.json")
    _part(cells, tmp_path / "all", slice(0, 24), (*old_classes, "Platelets"), "val", "val.json")
    _part(cells, tmp_path / "old", slice(0, 24), old_classes, "val", "val.json")
    old = tmp_path / "old.safetensors"
    _without_last_class("cells", old)
    before = evaluate(old, tmp_path / "old").per_class
    settings = {
        "epochs": 6, "learning_rate": 1e-3, "device": "cpu", "quiet": True, "ema_decay": 0.9,
        "weights": old, "keep_classes": True,
    }  # fmt: skip
    run = train("lite0", tmp_path / "new", out=tmp_path / "kept", **settings)
    after = evaluate(run.last, tmp_path / "all").per_class
    print(f"\nbefore {before}\nafter {after}")
    for name in old_classes:
        assert (after[name] or 0) > (before[name] or 0) - 0.25
    assert (after["Platelets"] or 0) > 0.1


def _without_last_class(weights: str, target: Path) -> None:
    """Save a detector without the last of its classes."""
    network, info = load_checkpoint(find_weights(weights))
    state = network.state_dict()
    for name in ("class_head.predict.pointwise.weight", "class_head.predict.pointwise.bias"):
        state[name] = state[name].unflatten(0, (-1, network.num_classes))[:, :-1].flatten(0, 1)
    kept = dataclasses.replace(info, class_names=info.class_names[:-1], category_ids=info.category_ids[:-1])
    save_checkpoint(target, state, kept)
