"""train: a data set in, weights out."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from efficientdet.atomic_write import write_text
from efficientdet.data.dataset import DetectionDataset, read_split
from efficientdet.data.records import Records
from efficientdet.errors import DataError, EfficientDetError, MissingSplitError, SettingError, require
from efficientdet.family import ModelSpec
from efficientdet.images.letterbox import Preprocessing
from efficientdet.network.efficientdet import EfficientDet, create_model
from efficientdet.network.topology import Topology
from efficientdet.training.config import TrainConfig
from efficientdet.training.initial_weights import start_backbone_from, start_from
from efficientdet.training.memory import KEEP_VARIABLE, kept_memory
from efficientdet.training.precision import LIGHTNING_PRECISIONS, choose_precision
from efficientdet.training.run_folder import CONFIG_FILE, RESUME_FILE, TrainingRun
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger


def train(
    model: str | ModelSpec,
    data: str | Path,
    *,
    feature_network: str | Path | Topology | None = None,
    fusion: str | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    skip_missing: bool = False,
    quiet: bool = False,
    config: TrainConfig | None = None,
    **settings: Any,
) -> TrainingRun:
    """Train a detector on a data set and keep its best and last checkpoint.

    Args:
        model: name of the family (`d0`, `lite0`, ...) or a spec.
        data: folder with a `train` and, if possible, a `val` split (see `data.dataset.read_split`), or one COCO JSON.
        feature_network: see `create_model`; None for the model's own.
        fusion: see `create_model`; None for the model's own.
        backbone: see `create_model`; None for the model's own.
        weights: start from this detector: a bundled name or a checkpoint of the same network. Where its classes differ,
            the last layer of the class head starts afresh.
        backbone_weights: start the backbone alone: from a detector (what `weights` takes), or from a `.npz` of folded
            ImageNet weights.
        out: folder of the run; None for the next free `runs/N`.
        resume: go on with the run in `out` from its last saved step, to the weights that it would have had.
        skip_missing: leave out pictures whose file is missing, and count them.
        quiet: print nothing.
        config: settings; or give them by keyword, such as `epochs=20`.
        **settings: fields of `TrainConfig`, over those of `config`.

    Returns:
        The run.

    Raises:
        DataError: the data set is at fault, has no boxes, or its splits disagree on the classes.
        ImageError: a picture cannot be read.
        SettingError: a setting is unknown, out of range, not to be had on this machine, or the run cannot be resumed.
        WeightsError: the starting weights do not fit.
        MissingExtraError: Lightning or the evaluator is not installed.
    """
    require("lightning.pytorch", "train")
    require("faster_coco_eval", "train")
    config = _settings(config, settings)
    _accelerator(config)
    console = Console(quiet=quiet, stderr=True, markup=False, highlight=False, soft_wrap=True)
    folder = _run_folder(out, resume)
    # A run that was stopped before it saved anything is begun again in the same way.
    has_state = resume and (folder / RESUME_FILE).is_file()
    train_records, val_records = _read(Path(data), config, skip_missing, console)
    torch.manual_seed(config.seed)
    network = create_model(
        model, len(train_records.class_names), feature_network=feature_network, fusion=fusion,
        backbone=backbone, drop_path=config.drop_path,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # fmt: skip
    preprocessing = default_preprocessing(network.spec)
    if has_state:
        preprocessing = _take_up(network, folder)
    elif weights is not None:
        preprocessing = start_from(network, weights, train_records.class_names, console)
    size = config.image_size or network.spec.image_size
    _check_batch(min(config.batch_size, len(train_records)), size, network.spec)
    info = CheckpointInfo(
        spec=dataclasses.replace(network.spec, image_size=size),
        class_names=train_records.class_names,
        category_ids=train_records.category_ids,
        preprocessing=preprocessing,
        training={"data": Path(data).name, "weights": str(weights or backbone_weights or ""), **config.to_dict()},
    )
    sets = [
        DetectionDataset(records, (size, size), info.preprocessing, augmentation, config.seed, config.cache)
        if records
        else None
        for records, augmentation in ((train_records, config.augmentation()), (val_records, None))
    ]
    train_set, val_set = sets
    if train_set is None:
        raise DataError(f"{data}: the training split is empty")
    if backbone_weights is not None and not has_state:
        start_backbone_from(network, backbone_weights, train_records, size, preprocessing)
    _remember(folder, config, info, resume)
    with _calm_lightning():
        return _fit(
            network, config, train_set, val_set, info, folder,
            is_pretrained=bool(weights or backbone_weights), resume=has_state, quiet=quiet, console=console,
        )  # fmt: skip


def _take_up(network: EfficientDet, folder: Path) -> Preprocessing:
    """What the starting weights brought along when the run began: the shapes of anchors, and the preprocessing."""
    saved = json.loads((folder / CONFIG_FILE).read_text())["checkpoint"]
    network.spec = dataclasses.replace(network.spec, aspects=ModelSpec.from_dict(saved["spec"]).aspects)
    return Preprocessing.from_dict(saved["preprocessing"])


def _check_batch(batch_size: int, image_size: int, spec: ModelSpec) -> None:
    coarsest = spec.strides[-1]
    if batch_size == 1 and image_size <= coarsest:
        raise SettingError(
            f"a batch of one picture at image_size {image_size}: the coarsest level has a single place, of which no "
            f"batch norm can take statistics; train on 2 pictures or more at a time, or at more than {coarsest} pixels"
        )


def _settings(config: TrainConfig | None, settings: dict[str, Any]) -> TrainConfig:
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise SettingError(f"unknown training settings {unknown}; known: {', '.join(known)}")
    return dataclasses.replace(config or TrainConfig(), **settings)


def _accelerator(config: TrainConfig) -> str:
    """Lightning's word for the device to train on, which must be there."""
    chosen = config.device
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": config.devices, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    if config.devices > there[chosen]:
        raise SettingError(
            f"device {chosen} with devices {config.devices}: this machine has {there[chosen]}; choose cpu, or fewer"
        )
    if config.precision == "fp16" and chosen == "cpu":
        raise SettingError("precision fp16 needs a GPU, and there is none here; use bf16 or fp32")
    return chosen


def _run_folder(out: str | Path | None, resume: bool) -> Path:
    if out is None:
        if resume:
            raise SettingError("resume needs out, the folder of the run to go on with")
        number = 1
        while Path("runs", str(number)).exists():
            number += 1
        return Path("runs", str(number))
    folder = Path(out)
    if resume and not (folder / CONFIG_FILE).is_file():
        raise SettingError(f"{folder}: no run to resume there ({CONFIG_FILE} is missing)")
    if not resume and (folder / CONFIG_FILE).exists():
        raise SettingError(f"{folder} holds a run already; resume it, or choose another folder for out")
    return folder


def _read(data: Path, config: TrainConfig, skip_missing: bool, console: Console) -> tuple[Records, Records | None]:
    train_records = read_split(data, "train", skip_missing)
    try:
        is_one_split = data.is_file() and data.suffix not in (".yaml", ".yml")
        val_records = None if is_one_split else read_split(data, "val", skip_missing)
    except MissingSplitError:
        val_records = None
    for name, records in (("train", train_records), ("val", val_records)):
        if records is None:
            console.print(f"{name}: none found; the last weights are kept, nothing is evaluated")
            continue
        changed = ", ".join(f"{count} {what}" for what, count in records.counts.items() if count)
        console.print(
            f"{name}: {len(records)} pictures, {records.training_boxes} boxes, {len(records.class_names)} classes"
            + (f" ({changed})" if changed else "")
        )
    if train_records.training_boxes == 0 and not config.allow_no_boxes:
        raise DataError(
            f"{train_records.source}: not one box to train on ({len(train_records)} pictures); check the "
            "annotations, or set allow_no_boxes if only negatives are meant"
        )
    if val_records is not None and (
        (val_records.class_names, val_records.category_ids) != (train_records.class_names, train_records.category_ids)
    ):
        ours, theirs = (dict(zip(r.category_ids, r.class_names, strict=True)) for r in (train_records, val_records))
        raise DataError(f"{val_records.source}: its classes {theirs} are not those of {train_records.source}: {ours}")
    return train_records, val_records


def _remember(folder: Path, config: TrainConfig, info: CheckpointInfo, resume: bool) -> None:
    """Write the settings; for a resumed run, insist that they are the same."""
    fields = {"config": config.to_dict(), "checkpoint": json.loads(info.to_json())}
    text = json.dumps(fields, indent=2, sort_keys=True)
    path = folder / CONFIG_FILE
    if resume:
        before, now = (_what_must_stay(json.loads(content)) for content in (path.read_text(), text))
        changed = [name for name in now if name in before and before[name] != now[name]]
        if changed:
            raise SettingError(
                f"{folder}: the run was started with other settings: "
                + ", ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in changed)
            )
        return
    write_text(path, text)


def _what_must_stay(fields: dict[str, Any]) -> dict[str, Any]:
    """What a run and its resumption share; files by their names, for a folder may be called from elsewhere."""
    checkpoint = fields["checkpoint"]
    facts = {name: checkpoint[name] for name in ("spec", "class_names", "category_ids")}
    files = {name: Path(checkpoint["training"][name]).name for name in ("data", "weights")}
    return {**fields["config"], **facts, **files}


@contextmanager
def _calm_lightning() -> Iterator[None]:
    """Keep Lightning's tips and its remarks on loaders away from the user: the loaders are ours."""
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
    info: CheckpointInfo, folder: Path, *, is_pretrained: bool, resume: bool, quiet: bool, console: Console,
) -> TrainingRun:  # fmt: skip
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import TensorBoardLogger

    from efficientdet.training.callbacks import Ema, EpochLines, SaveCheckpoints, Throughput
    from efficientdet.training.module import DetectionModule

    seed_everything(config.seed, verbose=False)
    accelerator = _accelerator(config)
    workers = config.workers
    if workers is None:
        workers = 0 if accelerator == "cpu" else min(8, max(1, (os.cpu_count() or 2) - 1))
    precision = choose_precision(config.precision, accelerator)
    threads = f", {torch.get_num_threads()} threads" if accelerator == "cpu" else f" x {config.devices}"
    console.print(f"training on {accelerator}{threads}, in {precision}")
    module = DetectionModule(network, config, train_set, val_set, config.freezes_batch_norm(is_pretrained), workers)
    ema = Ema(config.ema_decay) if config.ema_decay else None
    saver = SaveCheckpoints(folder, info, config, ema)
    callbacks = [Throughput(config.batch_size * config.devices), saver]
    if ema is not None:
        callbacks.insert(0, ema)
    shows_bar = not quiet and sys.stderr.isatty()
    callbacks.append(RichProgressBar() if shows_bar else EpochLines(console))
    trainer = Trainer(
        accelerator=accelerator,
        devices=config.devices,
        max_epochs=config.epochs,
        precision=LIGHTNING_PRECISIONS[precision],  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        check_val_every_n_epoch=config.evaluate_every,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if val_set is not None else 0,
        callbacks=callbacks,
        logger=[_csv_logger(folder, resume), TensorBoardLogger(folder, "", "log")],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shows_bar,
        use_distributed_sampler=False,
    )
    try:
        # Loader processes are copies of this one, whose memory should be no larger than it must then.
        keeps = accelerator == "cpu" and workers == 0 and os.environ.get(KEEP_VARIABLE) != "0"
        with kept_memory() if keeps else nullcontext():
            trainer.fit(module, ckpt_path=str(folder / RESUME_FILE) if resume else None, weights_only=True)
    except EfficientDetError as error:
        # A loader process sends its errors with the traceback in front.
        if "Original Traceback" not in str(error):
            raise
        raise type(error)(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from None
    return saver.finish(module)


def _csv_logger(folder: Path, resume: bool) -> CSVLogger:
    """The log as CSV; a resumed run keeps the rows up to the saved step, which Lightning would delete."""
    from lightning.pytorch.loggers import CSVLogger

    path, rows = folder / "log" / "metrics.csv", []
    if resume and path.is_file():
        step = torch.load(folder / RESUME_FILE, mmap=True, weights_only=True)["global_step"]
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    logger = CSVLogger(folder, "", "log")
    if rows:
        logger.experiment.metrics = [{name: value for name, value in row.items() if value} for row in rows]
        logger.save()
    return logger
