"""train: a dataset in, weights out."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console

from efficientdet.errors import EfficientDetError, SettingError, require, sent_error
from efficientdet.family import ModelSpec
from efficientdet.settings import changed
from efficientdet.stop import Stopped, StopRequest, stop_signals
from efficientdet.text import printable
from efficientdet.training.batch_size import find_batch_size, halved, is_out_of_memory
from efficientdet.training.config import TrainConfig, typed_settings
from efficientdet.training.device import LIGHTNING_PRECISIONS, choose_device, choose_precision
from efficientdet.training.memory import kept_memory_for
from efficientdet.training.plan import Budget
from efficientdet.training.prepare import Job, Splits, prepare, read_splits
from efficientdet.training.processes import PATIENCE, Group, find_group, quiet_lightning, run_together
from efficientdet.training.recipes import recipe_settings
from efficientdet.training.run_folder import (
    CONFIG_FILE,
    RunSettings,
    TrainingRun,
    check_same,
    claim_folder,
    find_state,
    read_settings,
    resumed_config,
    write_settings,
)
from efficientdet.training.speed import plan_budget

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback
    from typing_extensions import Unpack

    from efficientdet.training.config import TrainOptions
    from efficientdet.training.module import DetectionModule


def train(
    model: str | ModelSpec,
    data: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    recipe: str | None = None,
    config: TrainConfig | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Unpack[TrainOptions],
) -> TrainingRun:
    """Train a detector on a dataset; keeps the best and the last checkpoint.

    SIGINT (Ctrl-C) and SIGTERM end the run after the current step, with its state saved; a second one ends it at once.

    Args:
        model: name of the family (`d0`, `lite0`, ...) or a spec.
        data: dataset with a `train` and, if possible, a `val` split (see `read_split`), or one file to train on.
        out: folder of the run; None for the next free `runs/N`.
        resume: continue the run in `out` from its last saved step, to the weights that it would have had. Its settings
            are kept: they need not be given again. More epochs or minutes, or another number of devices for the same
            images a step, are allowed, and a line says what differs; other changes of the weights are refused.
        quiet: print nothing.
        recipe: `modern`, which is what the defaults of `TrainConfig` are, or `paper`; None for the defaults.
        config: the settings; None for the defaults, or those of the run that is resumed.
        callbacks: of Lightning's, which are called after those of this package. With several devices each process has
            a copy, so they must be picklable.
        **settings: fields of `TrainConfig`, such as `epochs=20`, which go before those of the recipe, which go before
            those of `config`.

    Returns:
        The run.

    Raises:
        DataError: the dataset is at fault, has no boxes, or its splits disagree on the classes.
        ImageError: an image cannot be read.
        SettingError: a setting is unknown, out of range or impossible on this machine, the run cannot be resumed, or
            one of its processes died.
        UnknownNameError: the model or the recipe is not known.
        WeightsError: the starting weights do not fit.
        MissingExtraError: Lightning or the evaluator is not installed.
        KeyboardInterrupt: SIGINT arrived; says how to resume.
        Terminated: SIGTERM arrived; says how to resume.
    """
    budget = Budget.beginning_now()
    require("lightning.pytorch", "train")
    require("faster_coco_eval", "train")
    given = {**(recipe_settings(recipe) if recipe else {}), **settings}
    group = find_group()
    started = _stored_config(out) if resume else None
    chosen = changed(config or started or TrainConfig(), given)
    if group.launcher:
        if given.get("devices", group.devices) != group.devices:
            raise SettingError(
                f"devices is {given['devices']}, but {group.launcher} started {group.devices} processes; leave devices "
                "out"
            )
        chosen = dataclasses.replace(chosen, devices=group.devices)
    choose_device(chosen, group.machines)
    job = Job(
        model, Path(data), chosen, typed_settings(config, given), _checked(callbacks, chosen.devices),
        None if out is None else Path(out), resume, quiet,
    )  # fmt: skip
    with stop_signals() as stop, quiet_lightning():
        if chosen.devices == 1:
            return _train(job, budget, stop, group)
        run: TrainingRun = run_together(partial(_train, job, budget), chosen.devices, group, stop)
        return run


def _stored_config(out: str | Path | None) -> TrainConfig | None:
    """The settings of a run that is to be resumed; None if it has none, of which the run tells where it is at fault."""
    with suppress(SettingError):
        stored = read_settings(Path(out)) if out is not None and (Path(out) / CONFIG_FILE).is_file() else None
        return stored.config if stored else None
    return None


def _train(job: Job, budget: Budget, stop: StopRequest, group: Group) -> TrainingRun:
    """The part of a run in one of its processes; the first one decides what is left to decide, for all."""
    console = Console(quiet=job.quiet or group.rank > 0, stderr=True, markup=False, highlight=False, soft_wrap=True)
    if group.rank > 0:
        job = group.share(None)
        return _fit(job, prepare(job, read_splits(job, console), console), Circumstances(budget, stop, console, group))
    with claim_folder(job.out, job.resume) as folder:
        job = job._replace(
            folder=folder, machines=group.machines, started=read_settings(folder) if job.resume else None
        )
        if job.started is not None:
            job = job._replace(config=resumed_config(folder, job.started.config, job.config, job.typed))
        name = job.model if isinstance(job.model, str) else job.model.name
        command = ["efficientdet", "train", name, "--data", str(job.data), "--out", str(folder), "--resume"]
        stop.message = f"the run can be resumed: {shlex.join(command)}"
        return _train_within_memory(job, Circumstances(budget, stop, console, group))


class Circumstances(NamedTuple):
    """What a run takes place in.

    Attributes:
        budget: of minutes.
        stop: the signal to stop.
        console: where lines are printed.
        group: the processes of the run.
    """

    budget: Budget
    stop: StopRequest
    console: Console
    group: Group


def _checked(callbacks: Sequence[Callback], devices: int) -> tuple[Callback, ...]:
    from lightning.pytorch.callbacks import Callback

    for one in callbacks:
        if not isinstance(one, Callback):
            raise SettingError(f"callbacks holds {type(one).__name__}, which is none of Lightning's")
        try:
            if devices > 1:
                pickle.dumps(one)
        except Exception as error:  # whatever its parts raise
            raise SettingError(f"callback {type(one).__name__} cannot be copied to other devices: {error}") from error
    return tuple(callbacks)


def _train_within_memory(job: Job, around: Circumstances) -> TrainingRun:
    """Train; where memory runs out, go on in smaller batches."""
    splits = read_splits(job, around.console)
    while True:
        try:
            return _attempt(job, splits, around)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            stored = read_settings(job.folder)
            smaller = halved(stored.config if stored else job.config, around.console)
            job = job._replace(config=smaller, started=stored)
        gc.collect()
        torch.cuda.empty_cache()


def _attempt(job: Job, splits: Splits, around: Circumstances) -> TrainingRun:
    """Train until the end, or until memory runs out."""
    if job.started is None:
        job, budget = _with_choices(job, splits, around)
    else:
        job = job._replace(state=find_state(job.folder, around.console.print))
        budget = around.budget._replace(seconds=60 * (job.config.minutes or 0), most_epochs=job.config.epochs)
    prepared = prepare(job, splits, around.console)
    if job.started is not None:
        check_same(job.folder, job.started, prepared[1], around.console.print)
    write_settings(job.folder, prepared[1])
    return _fit(around.group.share(job), prepared, around._replace(budget=budget))


def _with_choices(job: Job, splits: Splits, around: Circumstances) -> tuple[Job, Budget]:
    """The run with the settings that are chosen when it is started: those of its budget, and the batch size."""
    config, minutes, budget, console = job.config, job.config.minutes, around.budget, around.console
    if minutes is not None:
        typed = job.typed
        if config.batch_size == "auto":  # the budget chooses it
            config, typed = dataclasses.replace(config, batch_size=TrainConfig().batch_size), typed - {"batch_size"}
        budget = budget._replace(seconds=60 * minutes)
        plan = plan_budget(job._replace(config=config), splits, budget, typed)
        for line in plan.lines:
            console.print(line)
        most = config.epochs if "epochs" in typed else budget.most_epochs
        budget = budget._replace(evaluation_seconds=plan.evaluation_seconds, most_epochs=most)
        config = changed(config, plan.settings)
    if config.batch_size == "auto":
        size = find_batch_size(job, splits)
        console.print(f"batch size {size}")
        config = dataclasses.replace(config, batch_size=size)
    return job._replace(config=config), budget


def _fit(job: Job, prepared: tuple[DetectionModule, RunSettings], around: Circumstances) -> TrainingRun:
    from lightning.pytorch import seed_everything

    from efficientdet.training.callbacks import Ema, SaveCheckpoints
    from efficientdet.training.deadline import Deadline
    from efficientdet.training.divergence import StopIfDiverging
    from efficientdet.training.loggers import SampleImages

    config, (module, used), stop, console = job.config, prepared, around.stop, around.console
    seed_everything(config.seed, verbose=False)
    device = choose_device(config, job.machines)
    precision = choose_precision(config.precision, device)
    count = f"{torch.get_num_threads()} threads" if device == "cpu" else f"{config.devices} devices"
    where = f"{config.devices} processes, " if device == "cpu" and config.devices > 1 else ""
    console.print(f"training on {device}, {where}{count}, in {precision}")
    ema = Ema(config.ema_decay) if config.ema_decay else None
    saver = SaveCheckpoints(job.folder, used.info, config, ema, stop, console)
    deadline = Deadline(around.budget, console) if config.minutes is not None else None
    samples = SampleImages(job.folder, used.info.preprocessing)
    own: list[Callback] = [one for one in (ema, samples, deadline, StopIfDiverging(config), saver) if one is not None]
    try:
        with kept_memory_for(device, module.workers):
            trainer = _trainer(job, device, precision, [*own, *job.callbacks], around)
            trainer.fit(module, ckpt_path=str(job.state) if job.state else None, weights_only=True)
    except Exception as error:
        if stop:  # such as a loader process that the same signal has ended
            raise Stopped from error
        explained = _explain(error, job, saver.has_started)
        if explained is None:
            raise
        raise explained from error
    run = saver.finish(module)
    if module.pace.is_changed:
        console.print("planned anew by the clock: the same command would end with other weights")
    if stop:  # after the last step
        raise Stopped
    return run


def _explain(error: Exception, job: Job, has_started: bool) -> EfficientDetError | None:
    """An error that tells what to do, for those of Lightning and of loader processes; None for others."""
    text = str(error)
    if isinstance(error, EfficientDetError):
        return sent_error(text)  # a loader process sends its errors with the traceback in front
    if "DataLoader worker" in text:
        return SettingError(
            f"a process that loads images died ({printable(text)}), probably for want of memory; resume the run with "
            "fewer workers or without the cache (--workers 0 --no-cache)"
        )
    is_of_the_others = isinstance(error, RuntimeError) and job.config.devices > 1  # such as a lost connection
    if job.state is not None and not has_started and not is_of_the_others:
        return SettingError(f"{job.state}: cannot be resumed from ({type(error).__name__}: {printable(text)})")
    return None


def _trainer(job: Job, device: str, precision: str, callbacks: list[Callback], around: Circumstances) -> Trainer:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.strategies import DDPStrategy

    from efficientdet.training.callbacks import Progress
    from efficientdet.training.loggers import build_loggers

    config, console = job.config, around.console
    shows_bar = not console.quiet and sys.stderr.isatty()
    progress = Progress(config.images_at_once * config.devices, None if shows_bar else console)
    return Trainer(
        accelerator=device,
        devices=config.devices // job.machines,
        num_nodes=job.machines,
        # Buffers are the same everywhere: batch norms take the statistics of all devices.
        strategy=DDPStrategy(timeout=PATIENCE, broadcast_buffers=False) if config.devices > 1 else "auto",
        plugins=[around.group.environment],
        max_epochs=config.epochs,
        precision=LIGHTNING_PRECISIONS[precision],  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        check_val_every_n_epoch=config.evaluate_every,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, progress, *([RichProgressBar()] if shows_bar else [])],
        logger=build_loggers(job),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shows_bar,
        use_distributed_sampler=False,
    )
