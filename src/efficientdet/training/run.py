"""train: a dataset in, weights out."""

from __future__ import annotations

import dataclasses
import gc
import logging
import pickle
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console

from efficientdet.errors import EfficientDetError, SettingError, Terminated, require
from efficientdet.family import ModelSpec
from efficientdet.settings import changed
from efficientdet.text import printable
from efficientdet.training.batch_size import find_batch_size, halved, is_out_of_memory
from efficientdet.training.cluster import PATIENCE, Cluster, find_cluster, joined
from efficientdet.training.config import TrainConfig, typed_settings
from efficientdet.training.device import LIGHTNING_PRECISIONS, choose_device, choose_precision
from efficientdet.training.memory import kept_memory_for
from efficientdet.training.plan import Budget
from efficientdet.training.prepare import Job, Splits, prepare, read_splits
from efficientdet.training.processes import joining, other_processes
from efficientdet.training.recipes import recipe_settings
from efficientdet.training.run_folder import (
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
from efficientdet.training.stop import Stopped, StopRequest, stop_signals
from efficientdet.weights.info import CheckpointInfo

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.strategies import Strategy
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
    cluster = find_cluster()
    is_first = cluster is None or cluster.rank == 0
    console = Console(quiet=quiet or not is_first, stderr=True, markup=False, highlight=False, soft_wrap=True)
    with stop_signals() as stop, _quiet_lightning(), joined(cluster) as share:
        if not is_first:
            job = share(None)
            module, used = prepare(job, read_splits(job.data, job.config, console), console)
            return _fit(job, module, used.info, stop, console, Budget.beginning_now(), cluster)
        with claim_folder(out, resume) as folder:
            started = read_settings(folder) if resume else None
            given = {**(recipe_settings(recipe) if recipe else {}), **settings}
            typed = typed_settings(config, given)
            config = _settings(config, given, cluster, started)
            if started is not None:
                config = resumed_config(folder, started.config, config, typed)
            machines = cluster.machines if cluster else 1
            choose_device(config, machines)
            name = model if isinstance(model, str) else model.name
            command = shlex.join(["efficientdet", "train", name, "--data", str(data), "--out", str(folder), "--resume"])
            stop.message = f"the run can be resumed: {command}"
            own = _checked(callbacks, config.devices)
            job = Job(model, Path(data), config, folder, started, callbacks=own, machines=machines)
            return _train_within_memory(job, Circumstances(typed, budget, stop, console, cluster, share))


class Circumstances(NamedTuple):
    """What a run takes place in.

    Attributes:
        typed: names of the settings that were given.
        budget: of minutes.
        stop: the signal to stop.
        console: where lines are printed.
        cluster: processes that a launcher has started; None for none.
        share: tells those of a cluster what to do.
    """

    typed: frozenset[str]
    budget: Budget
    stop: StopRequest
    console: Console
    cluster: Cluster | None
    share: Callable[[Any], Any]


def _settings(
    config: TrainConfig | None, given: Mapping[str, Any], cluster: Cluster | None, started: RunSettings | None
) -> TrainConfig:
    """What was given, over what a resumed run was started with; devices are the processes that a launcher started."""
    chosen = changed(config or (started.config if started else TrainConfig()), given)
    if cluster is not None:
        if given.get("devices", cluster.devices) != cluster.devices:
            raise SettingError(
                f"devices is {given['devices']}, but {cluster.launcher} started {cluster.devices} processes; leave "
                "devices out"
            )
        chosen = dataclasses.replace(chosen, devices=cluster.devices)
    return chosen


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
    splits = read_splits(job.data, job.config, around.console)
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
    console, budget = around.console, around.budget
    if job.started is None:
        job, budget = _with_choices(job, splits, around)
    else:
        budget = budget._replace(seconds=60 * (job.config.minutes or 0), most_epochs=job.config.epochs)
        job = job._replace(state=find_state(job.folder, console.print))
    module, used = prepare(job, splits, console)
    if job.started is not None:
        check_same(job.folder, job.started, used, console.print)
    write_settings(job.folder, used)
    around.share(job)
    with other_processes(job, 1 if around.cluster else job.config.devices):
        return _fit(job, module, used.info, around.stop, console, budget, around.cluster)


def _with_choices(job: Job, splits: Splits, around: Circumstances) -> tuple[Job, Budget]:
    """The run with the settings that are chosen when it is started: those of its budget, and the batch size."""
    config, minutes = job.config, job.config.minutes
    typed, budget, console = around.typed, around.budget, around.console
    if minutes is not None:
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


def join_run() -> None:
    """Take part in a run, in the process of another device than the first."""
    console = Console(quiet=True)
    with suppress(KeyboardInterrupt, Terminated), joining() as (job, ready), stop_signals() as stop:
        module, used = prepare(job, read_splits(job.data, job.config, console), console)
        ready()
        with _quiet_lightning():
            _fit(job, module, used.info, stop, console, Budget.beginning_now(), None)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's tips, and its warnings about loaders, which are ours."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (
                "does not have many workers", "smaller than the logging interval", "exists and is not empty",
                "num_workers", "isn't compatible with", "in eval mode", "Grad strides do not match",
            ):  # fmt: skip
                warnings.filterwarnings("ignore", f"(?s).*{text}.*")
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.utils.data.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fit(
    job: Job, module: DetectionModule, info: CheckpointInfo, stop: StopRequest, console: Console, budget: Budget,
    cluster: Cluster | None,
) -> TrainingRun:  # fmt: skip
    from lightning.pytorch import seed_everything

    from efficientdet.training.callbacks import Ema, SaveCheckpoints
    from efficientdet.training.deadline import Deadline
    from efficientdet.training.divergence import StopIfDiverging
    from efficientdet.training.loggers import SampleImages

    config = job.config
    seed_everything(config.seed, verbose=False)
    device = choose_device(config, job.machines)
    precision = choose_precision(config.precision, device)
    used = f"{torch.get_num_threads()} threads" if device == "cpu" else f"{config.devices} devices"
    where = f"{config.devices} processes, " if device == "cpu" and config.devices > 1 else ""
    console.print(f"training on {device}, {where}{used}, in {precision}")
    ema = Ema(config.ema_decay) if config.ema_decay else None
    saver = SaveCheckpoints(job.folder, info, config, ema, stop, console)
    deadline = Deadline(budget, console) if config.minutes is not None else None
    samples = SampleImages(job.folder, info.preprocessing)
    own: list[Callback] = [one for one in (ema, samples, deadline, StopIfDiverging(config), saver) if one is not None]
    trainer = _trainer(job, device, precision, [*own, *job.callbacks], console, cluster)
    try:
        with kept_memory_for(device, module.workers):
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
        # A loader process sends its errors with the traceback in front.
        is_sent = "Original Traceback" in text
        return type(error)(text.rstrip().rpartition(f"{type(error).__name__}: ")[2]) if is_sent else None
    if "DataLoader worker" in text:
        return SettingError(
            f"a process that loads images died ({printable(text)}), probably for want of memory; resume the run with "
            "fewer workers or without the cache (--workers 0 --no-cache)"
        )
    is_of_the_others = isinstance(error, RuntimeError) and job.config.devices > 1  # such as a lost connection
    if job.state is not None and not has_started and not is_of_the_others:
        return SettingError(f"{job.state}: cannot be resumed from ({type(error).__name__}: {printable(text)})")
    return None


def _trainer(
    job: Job, device: str, precision: str, callbacks: list[Callback], console: Console, cluster: Cluster | None
) -> Trainer:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import RichProgressBar

    from efficientdet.training.callbacks import EpochLines, Throughput
    from efficientdet.training.loggers import build_loggers

    config = job.config
    shows_bar = not console.quiet and sys.stderr.isatty()
    throughput = Throughput(config.images_at_once * config.devices)
    return Trainer(
        accelerator=device,
        devices=config.devices // job.machines,
        num_nodes=job.machines,
        strategy=_strategy(config.devices, is_started=cluster is None),
        plugins=[cluster.environment if cluster else LightningEnvironment()],
        max_epochs=config.epochs,
        precision=LIGHTNING_PRECISIONS[precision],  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        check_val_every_n_epoch=config.evaluate_every,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, throughput, RichProgressBar() if shows_bar else EpochLines(console)],
        logger=build_loggers(job),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shows_bar,
        use_distributed_sampler=False,
    )


def _strategy(devices: int, is_started: bool) -> Strategy | str:
    """How devices train together.

    Args:
        devices: their number.
        is_started: whether `other_processes` has started the others, and Lightning must not.
    """
    if devices == 1:
        return "auto"
    from lightning.pytorch.strategies import DDPStrategy

    class JoinedProcesses(DDPStrategy):
        """Distributed training in processes none of which Lightning has to start."""

        def _configure_launcher(self) -> None:
            self._launcher = None

    # Buffers are the same everywhere: batch norms take the statistics of all devices.
    return (JoinedProcesses if is_started else DDPStrategy)(timeout=PATIENCE, broadcast_buffers=False)
