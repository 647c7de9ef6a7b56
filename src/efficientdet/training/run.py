"""train: a dataset in, weights out."""

from __future__ import annotations

import csv
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from efficientdet.errors import EfficientDetError, SettingError, Terminated, require
from efficientdet.family import ModelSpec
from efficientdet.settings import changed
from efficientdet.text import printable
from efficientdet.training.config import TrainConfig
from efficientdet.training.device import LIGHTNING_PRECISIONS, choose_device, choose_precision
from efficientdet.training.memory import KEEP_VARIABLE, kept_memory
from efficientdet.training.prepare import Job, prepare
from efficientdet.training.processes import joining, other_processes
from efficientdet.training.recipes import recipe_settings
from efficientdet.training.run_folder import (
    TrainingRun,
    check_same,
    claim_folder,
    find_state,
    read_settings,
    write_settings,
)
from efficientdet.training.stop import Stopped, StopRequest, stop_signals
from efficientdet.weights.checkpoint import CheckpointInfo

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import CSVLogger
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
    **settings: Unpack[TrainOptions],
) -> TrainingRun:
    """Train a detector on a dataset; keeps the best and the last checkpoint.

    SIGINT (Ctrl-C) and SIGTERM end the run after the current step, with its state saved; a second one ends it at once.

    Args:
        model: name of the family (`d0`, `lite0`, ...) or a spec.
        data: folder with a `train` and, if possible, a `val` split (see `read_split`), or one COCO JSON to train on.
        out: folder of the run; None for the next free `runs/N`.
        resume: continue the run in `out` from its last saved step, to the weights that it would have had. Its settings
            are kept: they need not be given again, and cannot be changed if they would change the weights.
        quiet: print nothing.
        recipe: `modern`, which is what the defaults of `TrainConfig` are, or `paper`; None for the defaults.
        config: the settings; None for the defaults, or those of the run that is resumed.
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
    require("lightning.pytorch", "train")
    require("faster_coco_eval", "train")
    console = Console(quiet=quiet, stderr=True, markup=False, highlight=False, soft_wrap=True)
    with stop_signals() as stop, claim_folder(out, resume) as folder:
        started = read_settings(folder) if resume else None
        given = {**(recipe_settings(recipe) if recipe else {}), **settings}
        config = changed(config or (started.config if started else TrainConfig()), given)
        choose_device(config)
        state = find_state(folder, console.print) if started else None
        job = Job(model, Path(data), config, folder, started, state)
        module, used = prepare(job, console)
        if started is None:
            write_settings(folder, used)
        else:
            check_same(folder, started, used)
        name = model if isinstance(model, str) else model.name
        command = shlex.join(["efficientdet", "train", name, "--data", str(data), "--out", str(folder), "--resume"])
        stop.message = f"the run can be resumed: {command}"
        with _quiet_lightning(), other_processes(job, config.devices):
            return _fit(job, module, used.info, stop, console)


def join_run() -> None:
    """Take part in a run, in the process of another device than the first."""
    console = Console(quiet=True)
    with suppress(KeyboardInterrupt, Terminated), joining() as (job, ready), stop_signals() as stop:
        module, used = prepare(job, console)
        ready()
        with _quiet_lightning():
            _fit(job, module, used.info, stop, console)


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
                "num_workers", "isn't compatible with", "in eval mode",
            ):  # fmt: skip
                warnings.filterwarnings("ignore", f"(?s).*{text}.*")
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.utils.data.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fit(job: Job, module: DetectionModule, info: CheckpointInfo, stop: StopRequest, console: Console) -> TrainingRun:
    from lightning.pytorch import seed_everything

    from efficientdet.training.callbacks import Ema, SaveCheckpoints

    config = job.config
    seed_everything(config.seed, verbose=False)
    device = choose_device(config)
    precision = choose_precision(config.precision, device)
    used = f"{torch.get_num_threads()} threads" if device == "cpu" else f"{config.devices} devices"
    console.print(f"training on {device}, {used}, in {precision}")
    ema = Ema(config.ema_decay) if config.ema_decay else None
    saver = SaveCheckpoints(job.folder, info, config, ema, stop)
    trainer = _trainer(job, device, precision, [*([ema] if ema else []), saver], console)
    # Loader processes are copies of this one, so its memory should be no larger than needed then.
    keeps = device == "cpu" and module.workers == 0 and os.environ.get(KEEP_VARIABLE) != "0"
    try:
        with kept_memory() if keeps else nullcontext():
            trainer.fit(module, ckpt_path=str(job.state) if job.state else None, weights_only=True)
    except Exception as error:
        if stop:  # such as a loader process that the same signal has ended
            raise Stopped from error
        explained = _explain(error, job, saver.has_started)
        if explained is None:
            raise
        raise explained from error
    run = saver.finish(module)
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
    if job.state is not None and not has_started:
        return SettingError(f"{job.state}: cannot be resumed from ({type(error).__name__}: {printable(text)})")
    return None


def _trainer(job: Job, device: str, precision: str, callbacks: list[Callback], console: Console) -> Trainer:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import TensorBoardLogger

    from efficientdet.training.callbacks import EpochLines, Throughput

    config = job.config
    shows_bar = not console.quiet and sys.stderr.isatty()
    throughput = Throughput(config.batch_size * config.devices)
    return Trainer(
        accelerator=device,
        devices=config.devices,
        strategy=_strategy(config.devices),
        max_epochs=config.epochs,
        precision=LIGHTNING_PRECISIONS[precision],  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        check_val_every_n_epoch=config.evaluate_every,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, throughput, RichProgressBar() if shows_bar else EpochLines(console)],
        logger=[_csv_logger(job), TensorBoardLogger(job.folder, "", "log")],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shows_bar,
        use_distributed_sampler=False,
    )


def _strategy(devices: int) -> Strategy | str:
    if devices == 1:
        return "auto"
    from lightning.pytorch.strategies import DDPStrategy

    class JoinedProcesses(DDPStrategy):
        """Distributed training in the processes of `other_processes`, none of which Lightning has to start."""

        def _configure_launcher(self) -> None:
            self._launcher = None

    return JoinedProcesses()


def _csv_logger(job: Job) -> CSVLogger:
    """The log as CSV. A resumed run keeps the rows up to its saved step, which Lightning would delete."""
    from lightning.pytorch.loggers import CSVLogger

    path, rows = job.folder / "log" / "metrics.csv", []
    if job.state is not None and path.is_file():
        step = torch.load(job.state, mmap=True, weights_only=True)["global_step"]
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    logger = CSVLogger(job.folder, "", "log")
    if rows:
        logger.experiment.metrics = [{name: value for name, value in row.items() if value} for row in rows]
        logger.save()
    return logger
