"""Measures how fast this machine trains and evaluates: a few steps of the run itself, before it begins."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from efficientdet.data.dataset import EpochBatches
from efficientdet.data.records import Records
from efficientdet.training import plan
from efficientdet.training.device import LIGHTNING_PRECISIONS, choose_device, choose_precision
from efficientdet.training.memory import kept_memory_for
from efficientdet.training.plan import SIZES, Budget, DatasetFacts, Plan, Speed
from efficientdet.training.prepare import Job, Splits, prepare

if TYPE_CHECKING:
    from efficientdet.training.module import DetectionModule

# Steps at each image size, of which the first, which can take ten times as long, is not counted; two at the least.
STEPS = 4
# Measuring ends at this share of the budget.
SHARE = 0.03
# Boxes of each share of the sizes that the plan looks at.
QUANTILES = 20


def facts_of(splits: Splits) -> DatasetFacts:
    """What of a dataset decides the settings."""
    train = splits.train
    usable = EpochBatches(train, 1, 0).usable
    longest = [max(train.images[i].image_size) for i in usable]
    return DatasetFacts(
        len(usable), len(splits.val) if splits.val else 0, float(np.median(longest)), tuple(_box_sides(train))
    )


def _box_sides(records: Records) -> list[float]:
    """Square roots of the boxes' areas as shares of their image's longest side, at even quantiles."""
    found = []
    for image in records.images:
        sides = (image.boxes_xyxy[:, 2:] - image.boxes_xyxy[:, :2])[~image.is_ignored]
        found.append(np.sqrt(sides.prod(1)) / max(image.image_size))
    every = np.concatenate(found) if found else np.empty(0)
    if not len(every):
        return []
    shares: list[float] = np.quantile(every, (np.arange(QUANTILES) + 0.5) / QUANTILES).tolist()
    return shares


def plan_budget(job: Job, splits: Splits, budget: Budget, typed: frozenset[str]) -> Plan:
    """Measure this machine's speed and choose the settings that were not typed."""
    config = job.config
    if plan.may_freeze(config, typed):  # as nearly every plan has it
        config = dataclasses.replace(config, frozen_stages=plan.FROZEN_STAGES)
    speed = measure(job._replace(config=config), splits, budget.seconds)
    return plan.plan(facts_of(splits), speed, budget.left(), job.config, typed)


def measure(job: Job, splits: Splits, seconds: float) -> Speed:
    """Train and evaluate a few batches at one or two image sizes.

    Args:
        job: the run; its folder is left alone.
        splits: its dataset.
        seconds: of the budget, of which measuring takes a few hundredths.
    """
    config, limit = job.config, SHARE * seconds
    speed = Speed({}, {})
    first = config.image_size or SIZES[0]
    _add(speed, job, splits, first, limit)
    if config.image_size is None:
        per_step = speed.train[first] * (2 + STEPS) * int(config.batch_size)
        affordable = [size for size in SIZES if per_step * size**2 / first**2 < limit and size <= 2 * first]
        if affordable and affordable[-1] > first:
            try:
                _add(speed, job, splits, affordable[-1], limit)
            except torch.OutOfMemoryError:
                speed = dataclasses.replace(speed, too_large=affordable[-1])
    return speed


def _add(speed: Speed, job: Job, splits: Splits, size: int, limit: float) -> None:
    """Measure at one image size."""
    config = dataclasses.replace(
        job.config, image_size=size, epochs=100, devices=1, accumulate=1, warmup_epochs=0,
        backbone_weights=None,  # reading them can take seconds, and the speed is the same without
    )  # fmt: skip
    module, _ = prepare(job._replace(config=config), splits, Console(quiet=True))
    device = choose_device(config)
    batch = len(next(iter(EpochBatches(splits.train, int(config.batch_size), config.seed))))
    with kept_memory_for(device, module.workers):
        training, evaluation = _run(module, device, limit)
    shares = 1 if device == "cpu" else job.config.devices  # processes on a CPU share its cores
    speed.train[size] = training / batch / shares
    if evaluation is not None and module.val_set is not None:
        speed.evaluate[size] = evaluation / min(len(module.val_set), int(config.batch_size)) / shares


def _run(module: DetectionModule, device: str, limit: float) -> tuple[float, float | None]:
    """Seconds of a training step, and of a batch of an evaluation if there are any."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback

    class Stopwatch(Callback):
        """Notes when steps end."""

        def __init__(self) -> None:
            self.started, self.steps, self.evaluations = plan.clock(), list[float](), list[float]()

        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            self._wait()
            self.steps.append(plan.clock())
            trainer.should_stop = len(self.steps) > 1 and plan.clock() - self.started > limit

        def on_validation_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
            self.evaluations.append(plan.clock())

        def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            self._wait()
            self.evaluations.append(plan.clock())

        def _wait(self) -> None:
            if device == "cuda":
                torch.cuda.synchronize()

    watch = Stopwatch()
    trainer = Trainer(
        accelerator=device, devices=1, max_epochs=1000, max_steps=STEPS, limit_val_batches=2, logger=False,
        precision=LIGHTNING_PRECISIONS[choose_precision(module.config.precision, device)],  # type: ignore[arg-type]
        check_val_every_n_epoch=1000, num_sanity_val_steps=0, callbacks=[watch], enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module)
    if module.val_set is not None:
        trainer.validate(module, verbose=False)
    return _mean_step([watch.started, *watch.steps]), _mean_step(watch.evaluations) if watch.evaluations else None


def _mean_step(times: list[float]) -> float:
    """Mean time between moments, without the first pair, which warms up, where there are others."""
    first = 1 if len(times) > 2 else 0
    return (times[-1] - times[first]) / (len(times) - 1 - first)
