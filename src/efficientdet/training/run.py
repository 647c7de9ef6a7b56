"""train: a dataset in, weights out."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from efficientdet.data.augment import Augmentation
from efficientdet.data.dataset import DetectionDataset, read_split
from efficientdet.data.records import Records
from efficientdet.errors import DataError, EfficientDetError, MissingSplitError, SettingError, require
from efficientdet.family import ModelSpec
from efficientdet.network.efficientdet import EfficientDet, build_model
from efficientdet.settings import changed, to_dict
from efficientdet.training.config import TrainConfig
from efficientdet.training.device import LIGHTNING_PRECISIONS, choose_device, choose_precision, choose_workers
from efficientdet.training.initial_weights import start_backbone_from, start_from
from efficientdet.training.memory import KEEP_VARIABLE, kept_memory
from efficientdet.training.run_folder import (
    RESUME_FILE,
    RunSettings,
    TrainingRun,
    check_same,
    choose_folder,
    read_settings,
    write_settings,
)
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import CSVLogger
    from typing_extensions import Unpack

    from efficientdet.training.config import TrainOptions


def train(
    model: str | ModelSpec,
    data: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    config: TrainConfig | None = None,
    **settings: Unpack[TrainOptions],
) -> TrainingRun:
    """Train a detector on a dataset; keeps the best and the last checkpoint.

    Args:
        model: name of the family (`d0`, `lite0`, ...) or a spec.
        data: folder with a `train` and, if possible, a `val` split (see `read_split`), or one COCO JSON to train on.
        out: folder of the run; None for the next free `runs/N`.
        resume: continue the run in `out` from its last saved step, to the weights that it would have had. Its settings
            are kept: they need not be given again, and cannot be changed if they would change the weights.
        quiet: print nothing.
        config: the settings; None for the defaults, or those of the run that is resumed.
        **settings: fields of `TrainConfig`, such as `epochs=20`, which go before those of `config`.

    Returns:
        The run.

    Raises:
        DataError: the dataset is at fault, has no boxes, or its splits disagree on the classes.
        ImageError: an image cannot be read.
        SettingError: a setting is unknown, out of range or impossible on this machine, or the run cannot be resumed.
        WeightsError: the starting weights do not fit.
        MissingExtraError: Lightning or the evaluator is not installed.
    """
    require("lightning.pytorch", "train")
    require("faster_coco_eval", "train")
    folder = choose_folder(out, resume)
    started = read_settings(folder) if resume else None
    config = changed(config or (started.config if started else TrainConfig()), settings)
    choose_device(config)
    console = Console(quiet=quiet, stderr=True, markup=False, highlight=False, soft_wrap=True)
    train_records, val_records = _read_splits(Path(data), config, console)
    # A run that was stopped before its first save starts from the beginning.
    resumed = started if (folder / RESUME_FILE).is_file() else None
    network, info = _build(model, config, train_records, resumed, console)
    info.training["data"] = Path(data).name
    if started is None:
        write_settings(folder, RunSettings(config, info))
    else:
        check_same(folder, started, RunSettings(config, info))
    size = (info.spec.image_size, info.spec.image_size)
    augmentation = Augmentation(config.scale_range(), config.flip)
    train_set = DetectionDataset(train_records, size, info.preprocessing, augmentation, config.seed, config.cache)
    val_set = None
    if val_records is not None:
        val_set = DetectionDataset(val_records, size, info.preprocessing, cache=config.cache)
    with _quiet_lightning():
        return _fit(network, config, train_set, val_set, info, folder, resumed is not None, console)


def _read_splits(data: Path, config: TrainConfig, console: Console) -> tuple[Records, Records | None]:
    """The training split, and the validation split where there is one; a line for each."""
    train_records = read_split(data, "train", config.skip_missing)
    val_records = None
    if data.is_dir() or data.suffix in (".yaml", ".yml"):  # else the file is the training split
        with suppress(MissingSplitError):
            val_records = read_split(data, "val", config.skip_missing)
    for name, records in (("train", train_records), ("val", val_records)):
        console.print(f"{name}: {_summary(records)}")
    if train_records.training_boxes == 0 and not config.allow_no_boxes:
        raise DataError(
            f"{train_records.source}: not one box to train on ({len(train_records)} images); check the "
            "annotations, or set allow_no_boxes if only negatives are meant"
        )
    if val_records is not None and (
        (val_records.class_names, val_records.category_ids) != (train_records.class_names, train_records.category_ids)
    ):
        ours, theirs = (dict(zip(r.category_ids, r.class_names, strict=True)) for r in (train_records, val_records))
        raise DataError(f"{val_records.source}: its classes {theirs} are not those of {train_records.source}: {ours}")
    return train_records, val_records


def _summary(records: Records | None) -> str:
    if records is None:
        return "none found; nothing is evaluated, and the last weights are kept"
    counts = ", ".join(f"{count} {what}" for what, count in records.counts.items() if count)
    totals = f"{len(records)} images, {records.training_boxes} boxes, {len(records.class_names)} classes"
    return f"{totals} ({counts})" if counts else totals


def _build(
    model: str | ModelSpec, config: TrainConfig, records: Records, resumed: RunSettings | None, console: Console
) -> tuple[EfficientDet, CheckpointInfo]:
    """The network with its starting weights, and the facts for its checkpoints.

    The weights of a resumed run are restored later; `resumed` gives the anchor shapes and the preprocessing that its
    starting weights brought with them.
    """
    torch.manual_seed(config.seed)
    network = build_model(
        model, len(records.class_names), feature_network=config.feature_network, fusion=config.fusion,
        backbone=config.backbone, drop_path=config.drop_path,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # fmt: skip
    preprocessing = default_preprocessing(network.spec)
    if resumed is not None:
        network.spec = dataclasses.replace(network.spec, aspects=resumed.info.spec.aspects)
        preprocessing = resumed.info.preprocessing
    elif config.weights:
        preprocessing = start_from(network, config.weights, records.class_names, console)
    size = config.image_size or network.spec.image_size
    coarsest = network.spec.strides[-1]
    if min(config.batch_size, len(records)) == 1 and size <= coarsest:
        raise SettingError(
            f"a batch of one image at image_size {size}: the coarsest level has a single cell, from which batch norms "
            f"cannot take statistics; train on 2 images or more at a time, or at more than {coarsest} pixels"
        )
    if config.backbone_weights and resumed is None:
        start_backbone_from(network, config.backbone_weights, records, size, preprocessing)
    network.spec = dataclasses.replace(network.spec, image_size=size)
    return network, CheckpointInfo(
        spec=network.spec,
        class_names=records.class_names,
        category_ids=records.category_ids,
        preprocessing=preprocessing,
        training=to_dict(config),
    )


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


def _fit(
    network: EfficientDet, config: TrainConfig, train_set: DetectionDataset, val_set: DetectionDataset | None,
    info: CheckpointInfo, folder: Path, resumes: bool, console: Console,
) -> TrainingRun:  # fmt: skip
    from lightning.pytorch import seed_everything

    from efficientdet.training.callbacks import Ema, SaveCheckpoints
    from efficientdet.training.module import DetectionModule

    seed_everything(config.seed, verbose=False)
    device = choose_device(config)
    workers = choose_workers(config.workers, device)
    threads = f"{torch.get_num_threads()} threads" if device == "cpu" else f"{config.devices} devices"
    precision = choose_precision(config.precision, device)
    console.print(f"training on {device}, {threads}, in {precision}")
    module = DetectionModule(network, config, train_set, val_set, workers)
    ema = Ema(config.ema_decay) if config.ema_decay else None
    saver = SaveCheckpoints(folder, info, config, ema)
    trainer = _trainer(config, device, precision, folder, [*([ema] if ema else []), saver], resumes, console)
    try:
        # Loader processes are copies of this one, so its memory should be no larger than needed then.
        keeps = device == "cpu" and workers == 0 and os.environ.get(KEEP_VARIABLE) != "0"
        with kept_memory() if keeps else nullcontext():
            trainer.fit(module, ckpt_path=str(folder / RESUME_FILE) if resumes else None, weights_only=True)
    except EfficientDetError as error:
        # A loader process sends its errors with the traceback in front.
        if "Original Traceback" not in str(error):
            raise
        raise type(error)(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from None
    return saver.finish(module)


def _trainer(
    config: TrainConfig, device: str, precision: str, folder: Path, callbacks: list[Callback], resumes: bool,
    console: Console,
) -> Trainer:  # fmt: skip
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import TensorBoardLogger

    from efficientdet.training.callbacks import EpochLines, Throughput

    shows_bar = not console.quiet and sys.stderr.isatty()
    throughput = Throughput(config.batch_size * config.devices)
    return Trainer(
        accelerator=device,
        devices=config.devices,
        max_epochs=config.epochs,
        precision=LIGHTNING_PRECISIONS[precision],  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        check_val_every_n_epoch=config.evaluate_every,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, throughput, RichProgressBar() if shows_bar else EpochLines(console)],
        logger=[_csv_logger(folder, resumes), TensorBoardLogger(folder, "", "log")],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shows_bar,
        use_distributed_sampler=False,
    )


def _csv_logger(folder: Path, resumes: bool) -> CSVLogger:
    """The log as CSV. A resumed run keeps the rows up to its saved step, which Lightning would delete."""
    from lightning.pytorch.loggers import CSVLogger

    path, rows = folder / "log" / "metrics.csv", []
    if resumes and path.is_file():
        step = torch.load(folder / RESUME_FILE, mmap=True, weights_only=True)["global_step"]
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    logger = CSVLogger(folder, "", "log")
    if rows:
        logger.experiment.metrics = [{name: value for name, value in row.items() if value} for row in rows]
        logger.save()
    return logger
