"""Runs with a budget, on a machine whose clock goes on with its steps alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientdet.errors import SettingError
from efficientdet.training import deadline, plan
from efficientdet.training.module import DetectionModule
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun, read_settings


class Machine:
    """Its clock goes on by what each step takes.

    Attributes:
        now: seconds.
        step_seconds: of the training step of a number, counted from the run's first, those measured before included.
        rates: the learning rate of each step.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.step_seconds: Callable[[int], float] = lambda number: 0.5
        self.rates: list[float] = []

    def steps(self) -> int:
        return len(self.rates)


MEASURED = 4  # steps before the run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    train_step, evaluate = DetectionModule.training_step, DetectionModule.validation_step

    def training_step(self: DetectionModule, batch: Any, batch_idx: int) -> Tensor | None:
        machine.now += machine.step_seconds(machine.steps())
        machine.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return train_step(self, batch, batch_idx)

    def validation_step(self: DetectionModule, batch: Any, batch_idx: int) -> None:
        machine.now += 0.2
        evaluate(self, batch, batch_idx)

    monkeypatch.setattr(plan, "clock", lambda: machine.now)
    monkeypatch.setattr(plan, "EPOCH_SECONDS", 0.0)  # this machine saves in no time
    monkeypatch.setattr(deadline, "EPOCH_SECONDS", 0.0)
    monkeypatch.setattr(DetectionModule, "training_step", training_step)
    monkeypatch.setattr(DetectionModule, "validation_step", validation_step)
    return machine


@pytest.fixture
def run(shapes: ModuleType, data: Path, tmp_path: Path) -> Callable[..., TrainingRun]:
    def start(**settings: Any) -> TrainingRun:
        fixed = {name: value for name, value in shapes.SETTINGS.items() if name != "epochs"}
        chosen = {"out": tmp_path / "run", "data": data, "image_size": 64, **fixed, **settings}
        return train(shapes.TINY, **chosen)

    return start


def _tensors(run: TrainingRun) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(run.last)


def test_on_a_steady_machine_a_budget_is_the_run_that_it_names(
    machine: Machine, run: Callable[..., TrainingRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = machine.now
    budgeted = run(minutes=0.5, quiet=False)
    said = capsys.readouterr().err
    assert 0.7 * 30 < machine.now - began <= 30
    assert budgeted.report["planned_anew"] == 0
    assert "planned anew" not in said
    started = read_settings(budgeted.folder)
    assert started is not None
    assert started.config.minutes == 0.5
    assert started.config.epochs > 5
    (command,) = [line for line in said.splitlines() if line.startswith("the same without a budget: ")]
    words = command.partition(": ")[2].replace("--", "").split()
    names = {"epochs": int, "evaluate_every": int, "evaluate_images": int, "warmup_epochs": float, "batch_size": int}
    settings: dict[str, Any] = {}
    for name, value in zip(words, words[1:], strict=False):
        if (key := name.replace("-", "_")) in names:
            settings[key] = names[key](value)
    if "scale-jitter" in words:
        at = words.index("scale-jitter")
        settings["scale_jitter"] = (float(words[at + 1]), float(words[at + 2]))
    assert settings["epochs"] == started.config.epochs
    plain = run(out=tmp_path / "plain", **settings)
    theirs = _tensors(plain)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in _tensors(budgeted).items())
    assert plain.report == budgeted.report


@pytest.mark.parametrize(
    ("slower", "last"), [(2, 0.1), pytest.param(6, 0.3, marks=pytest.mark.slow)]
)  # a few long steps are coarser
def test_on_a_machine_that_slows_down_the_learning_rate_still_reaches_its_end_in_time(
    slower: int, last: float, machine: Machine, run: Callable[..., TrainingRun], capsys: pytest.CaptureFixture[str]
) -> None:
    began = machine.now
    machine.step_seconds = lambda number: 0.5 * (slower if number > 20 else 1)
    done = run(minutes=1, quiet=False)
    assert machine.now - began <= 60
    assert done.report["planned_anew"] > 0
    said = capsys.readouterr().err
    assert "by the clock, the run ends after " in said
    assert "the same command would end with other weights" in said
    rates = machine.rates[MEASURED:]
    assert rates[-1] < last * max(rates)
    falls = [before - after for before, after in zip(rates, rates[1:], strict=False)]
    assert max(falls) < 3 * last * max(rates)  # never a jump
    assert done.metrics is not None
    assert done.best.is_file()


@pytest.mark.slow
def test_a_machine_that_turns_out_faster_trains_longer(machine: Machine, run: Callable[..., TrainingRun]) -> None:
    began = machine.now
    machine.step_seconds = lambda number: 1.0 if number < MEASURED else 0.5
    done = run(minutes=1)
    started = read_settings(done.folder)
    assert started is not None
    assert machine.steps() - MEASURED > 1.4 * 3 * started.config.epochs
    assert 50 < machine.now - began <= 60
    assert machine.rates[-1] < 0.1 * max(machine.rates)
    assert done.report["planned_anew"] > 0


def test_typed_epochs_are_not_exceeded(machine: Machine, run: Callable[..., TrainingRun]) -> None:
    done = run(minutes=5, epochs=4)
    assert machine.steps() - MEASURED == 12
    assert done.report["planned_anew"] == 0


def test_a_budget_that_ends_within_an_epoch_ends_with_an_evaluation(
    shapes: ModuleType, machine: Machine, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    folder = shapes.write_shapes(tmp_path / "set", {"train": 80, "val": 4})
    began = machine.now
    machine.step_seconds = lambda number: 1.0
    done = run(data=folder, minutes=0.5)
    assert machine.now - began <= 30
    steps = machine.steps() - MEASURED
    assert 5 < steps < 40
    assert machine.rates[-1] < 0.2 * max(machine.rates)
    assert done.metrics is not None
    assert done.metrics.images == 4
    before = done.last.read_bytes()
    again = run(data=folder, out=done.folder, resume=True)
    assert machine.steps() - MEASURED == steps  # it was complete
    assert again.last.read_bytes() == before


class _KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_resumed_run_has_what_is_left_of_its_budget(
    machine: Machine, run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = machine.now

    def killed_at_30(number: int) -> float:
        if number == MEASURED + 30:
            raise _KilledError
        return 0.5

    machine.step_seconds = killed_at_30
    with pytest.raises(_KilledError):
        run(minutes=1, save_every=1)
    before = machine.now - began
    machine.now += 5000  # until someone resumes it
    resumed = machine.now
    machine.step_seconds = lambda number: 0.5
    done = run(resume=True)
    assert before + machine.now - resumed <= 60 + 0.5
    assert before + machine.now - resumed > 45
    assert machine.rates[-1] < 0.1 * max(machine.rates)
    assert done.metrics is not None


@pytest.mark.slow
def test_a_resumed_run_keeps_the_end_that_was_planned_anew(
    machine: Machine, run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    def slower(number: int) -> float:
        return 0.5 if number < MEASURED + 20 else 1.0

    machine.step_seconds = slower
    whole = run(minutes=1, save_every=1)
    shutil.copytree(whole.folder, tmp_path / "again")
    steps = machine.steps()
    again = run(out=tmp_path / "again", resume=True)
    assert machine.steps() == steps
    assert again.report["planned_anew"] == whole.report["planned_anew"] > 0
    assert all(torch.equal(tensor, _tensors(whole)[name]) for name, tensor in _tensors(again).items())


@pytest.mark.slow
def test_a_budget_chooses_the_image_size_from_measured_speeds(
    machine: Machine, run: Callable[..., TrainingRun], capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(minutes=0.5, image_size=None, quiet=False)
    lines = capsys.readouterr().err.splitlines()
    at = next(
        i for i, line in enumerate(lines) if line.startswith("budget: 0.5 minutes for 6 images; a step of 2 takes")
    )
    assert lines[at + 1].startswith(f"image size {plan.SIZES[0]}: half of the boxes are under ")
    assert done.report["train"]["images"] == 6


def test_too_short_a_budget_leaves_no_folder(machine: Machine, run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    machine.step_seconds = lambda number: 60.0
    with pytest.raises(SettingError, match=r"minutes is 0\.5: too few for one step of 2 images at 64 px"):
        run(minutes=0.5)
    assert not (tmp_path / "run").exists()
