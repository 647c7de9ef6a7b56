from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from efficientdet.training import plan, speed
from efficientdet.training.config import TrainConfig
from efficientdet.training.plan import Budget, Speed
from efficientdet.training.prepare import Job, Splits, read_splits
from efficientdet.training.speed import facts_of, measure, plan_budget

# A run silences Lightning's tips; here there is none around it.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def job(shapes: ModuleType, data: Path, tmp_path: Path) -> Job:
    config = TrainConfig(batch_size=2, device="cpu", precision="fp32", workers=0)
    return Job(shapes.TINY, data, config, folder=tmp_path / "none")


@pytest.fixture
def splits(job: Job) -> Splits:
    return read_splits(job, Console(quiet=True))


def test_the_facts_of_a_dataset(splits: Splits) -> None:
    facts = facts_of(splits)
    assert (facts.images, facts.val_images) == (6, 4)
    assert 64 <= facts.longest_side <= 96
    shares = [
        np.sqrt((box[2] - box[0]) * (box[3] - box[1])) / max(image.image_size)
        for image in splits.train.images
        for box in image.boxes_xyxy
    ]
    assert min(shares) <= facts.box_sides[0] <= facts.box_sides[-1] <= max(shares)
    assert list(facts.box_sides) == sorted(facts.box_sides)
    assert facts_of(Splits(splits.train, None)).val_images == 0


def test_measuring_times_steps_of_the_run_at_two_sizes_and_leaves_nothing(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SIZES", (64, 96))
    found = measure(job, splits, 3600.0)
    assert set(found.train) == set(found.evaluate) == {64, 96}
    assert all(seconds > 0 for seconds in (*found.train.values(), *found.evaluate.values()))
    assert found.too_large is None
    assert not job.folder.exists()


def test_a_size_that_was_typed_is_the_only_one_measured(job: Job, splits: Splits) -> None:
    config = dataclasses.replace(job.config, image_size=64, backbone_weights="never-read.npz")
    typed = job._replace(config=config)
    found = measure(typed, Splits(splits.train, None), 3600.0)
    assert set(found.train) == {64}
    assert found.evaluate == {}


@pytest.mark.parametrize(
    ("weights", "typed", "stages"), [("own", (), 2), (None, (), 0), ("own", ("frozen_stages",), 0)]
)
def test_steps_are_measured_with_the_frozen_stages_of_the_plan(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch, weights: str | None, typed: tuple[str, ...], stages: int
) -> None:
    measured: list[TrainConfig] = []

    def noted(job: Job, *arguments: Any) -> Speed:
        measured.append(job.config)
        return Speed({64: 0.01}, {64: 0.01})

    monkeypatch.setattr(speed, "measure", noted)
    config = dataclasses.replace(job.config, weights=weights, minutes=1.0)
    plan_budget(job._replace(config=config), splits, Budget.beginning_now()._replace(seconds=60.0), frozenset(typed))
    assert [one.frozen_stages for one in measured] == [stages]


def test_a_size_that_does_not_fit_the_memory_is_the_limit(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SIZES", (64, 96))
    run = speed._run

    def limited(module: Any, *arguments: Any) -> Any:
        if module.train_set.size[0] > 64:
            raise torch.OutOfMemoryError
        return run(module, *arguments)

    monkeypatch.setattr(speed, "_run", limited)
    found = measure(job, splits, 3600.0)
    assert set(found.train) == {64}
    assert found.too_large == 96


def test_a_slow_machine_is_measured_by_fewer_steps(job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 10**6, 100))
    monkeypatch.setattr(plan, "clock", lambda: float(next(times)))
    steps: list[int] = []
    original = speed._mean_step

    def counted(moments: list[float]) -> float:
        steps.append(len(moments) - 1)
        return original(moments)

    monkeypatch.setattr(speed, "_mean_step", counted)
    found = measure(job, splits, 600.0)
    assert steps[0] == 2
    assert set(found.train) == {speed.SIZES[0]}
