"""What a run needs before its first step: the dataset read and checked, the network built with its starting weights."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console

from efficientdet.data.augment import Augmentation, count_too_small
from efficientdet.data.dataset import DetectionDataset, EpochBatches, usable_images
from efficientdet.data.quality.check import quick_check
from efficientdet.data.quality.report import brief
from efficientdet.data.read_split import has_several_splits, read_split
from efficientdet.data.records import BOXES_TOO_SMALL, Records
from efficientdet.data.tiling import tile_side
from efficientdet.errors import DataError, MissingSplitError, SettingError
from efficientdet.family import ModelSpec
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.settings import to_dict
from efficientdet.training.config import TrainConfig
from efficientdet.training.device import choose_device, choose_workers
from efficientdet.training.distillation import make_teacher
from efficientdet.training.effects import refuse_unsuited
from efficientdet.training.initial_weights import start_backbone_from, start_from
from efficientdet.training.keep_classes import with_old_classes
from efficientdet.training.run_folder import RunSettings, fingerprint
from efficientdet.weights.checkpoint import read_info
from efficientdet.weights.create import create_model
from efficientdet.weights.info import CheckpointInfo, default_preprocessing
from efficientdet.weights.names import find_weights

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from efficientdet.training.module import DetectionModule


class Job(NamedTuple):
    """A run, as each of its processes is told of it.

    Attributes:
        model: name or spec.
        data: folder or annotation file of the dataset.
        config: the settings.
        typed: names of those that were given.
        callbacks: Lightning's, that the caller adds.
        out: the folder that was asked for; None for the next free one.
        resume: continue the run in that folder.
        quiet: print nothing.
        folder: of the run.
        machines: number of machines, each with the same number of devices.
        started: what the run was started with, if it is resumed.
        state: the saved state that it is resumed from; None to start from the beginning.
    """

    model: str | ModelSpec
    data: Path
    config: TrainConfig
    typed: frozenset[str] = frozenset()
    callbacks: tuple[Callback, ...] = ()
    out: Path | None = None
    resume: bool = False
    quiet: bool = True
    folder: Path = Path()
    machines: int = 1
    started: RunSettings | None = None
    state: Path | None = None


class Splits(NamedTuple):
    """The dataset of a run.

    Attributes:
        train: to train on.
        val: to evaluate on; None for no evaluation.
    """

    train: Records
    val: Records | None


def prepare(job: Job, splits: Splits, console: Console) -> tuple[DetectionModule, RunSettings]:
    """Build the network and what feeds it.

    Raises:
        DataError: no box of the dataset can be trained on.
        SettingError: a setting does not suit the network or the dataset.
        WeightsError: the starting weights do not fit.
    """
    from efficientdet.training.module import DetectionModule

    config = job.config
    train_records, val_records = splits.train, _evenly(splits.val, config.evaluate_images)
    if config.keep_classes:
        train_records, val_records = _with_old_classes(config, train_records, val_records, console)
    network, info = build_network(job, train_records, console)
    refuse_unsuited(config, val_records is not None, len(network.backbone.stages()) - 1)
    if not console.quiet:
        for line in brief(quick_check(splits.train, splits.val, info.spec)):
            console.print(f"check: {line}")
    size = (info.spec.image_size, info.spec.image_size)
    augmentation = Augmentation(config.scale_range(), config.flip)
    report_too_small(train_records, size, augmentation, config.allow_no_boxes, console)
    EpochBatches(
        train_records, config.images_at_once, config.seed, 0, config.devices
    )  # are there images for each device?
    train_set = DetectionDataset(train_records, size, info.preprocessing, augmentation, config.seed, config.cache)
    val_set = None
    if val_records is not None:
        val_set = DetectionDataset(val_records, size, info.preprocessing, cache=config.cache)
    workers = choose_workers(config.workers, choose_device(config, job.machines))
    module = DetectionModule(network, config, train_set, val_set, workers)
    module.teacher = make_teacher(config, network, info, splits.train.class_names)
    return module, RunSettings(config, info, fingerprint(splits.train, splits.val))


def _evenly(records: Records | None, count: int | None) -> Records | None:
    """Some of the images, evenly chosen."""
    if records is None or count is None or count >= len(records):
        return records
    return dataclasses.replace(records, images=[records.images[i * len(records) // count] for i in range(count)])


def _with_old_classes(
    config: TrainConfig, train: Records, val: Records | None, console: Console
) -> tuple[Records, Records | None]:
    """Both splits with labels of the extended detector; prints which classes are kept."""
    old = read_info(find_weights(str(config.weights)))
    kept = [name for name in old.class_names if name not in train.class_names]
    train, val = with_old_classes(train, old), val and with_old_classes(val, old)
    console.print(
        f"kept classes of {config.weights}: {', '.join(kept)}; they have no boxes here, so AP is of the others"
    )
    return train, val


def read_splits(job: Job, console: Console) -> Splits:
    """The training split, and the validation split where there is one; prints a line for each.

    Raises:
        DataError: the dataset is at fault, has no boxes, or its splits disagree on the classes.
    """
    data, config = job.data, job.config
    train_records = read_split(data, "train", config.skip_missing)
    val_records = None
    if has_several_splits(data):  # else it is the training split
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
    return Splits(train_records, val_records)


def _summary(records: Records | None) -> str:
    if records is None:
        return "none found; nothing is evaluated, and the last weights are kept"
    counts = ", ".join(f"{count} {what}" for what, count in records.counts.items() if count)
    totals = f"{len(records)} images, {records.training_boxes} boxes, {len(records.class_names)} classes"
    return f"{totals} ({counts})" if counts else totals


def report_too_small(
    records: Records, size: tuple[int, int], augmentation: Augmentation, allow_no_boxes: bool, console: Console
) -> None:
    """Count, and print, the boxes that the augmentation always drops.

    Raises:
        DataError: it drops all.
    """
    dropped = records.counts[BOXES_TOO_SMALL] = count_too_small(records, size, augmentation)
    if not dropped:
        return
    of_all = f"{dropped} of {records.training_boxes} boxes are less than a pixel wide or high at image_size {size[0]}"
    if dropped == records.training_boxes and not allow_no_boxes:
        raise DataError(f"{records.source}: {of_all}, so there is nothing to train on; use a larger image_size")
    console.print(f"train: {of_all} and are never trained on; a larger image_size would keep them")


def build_network(job: Job, records: Records, console: Console) -> tuple[EfficientDet, CheckpointInfo]:
    """The network with its starting weights, and the facts for its checkpoints.

    The weights of a resumed run are restored later; anchor shapes and preprocessing come from what it was started with.
    """
    config = job.config
    torch.manual_seed(config.seed)
    network = create_model(
        job.model, len(records.class_names), feature_network=config.feature_network, fusion=config.fusion,
        backbone=config.backbone, drop_path=config.drop_path, **config.anchors(),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # fmt: skip
    preprocessing = default_preprocessing(network.spec)
    if job.state is not None and job.started is not None:
        started = job.started.info.spec
        network.spec = dataclasses.replace(network.spec, anchor_scale=started.anchor_scale, aspects=started.aspects)
        preprocessing = job.started.info.preprocessing
    elif config.weights:
        preprocessing = start_from(network, config.weights, records.class_names, console, config.keep_classes)
        network.spec = dataclasses.replace(network.spec, **config.anchors())
    size = config.image_size or network.spec.image_size
    coarsest = network.spec.strides[-1]
    if min(config.images_at_once * config.devices, len(usable_images(records))) == 1 and size <= coarsest:
        raise SettingError(
            f"a batch of one image at image_size {size}: the coarsest level has a single cell, from which batch norms "
            f"cannot take statistics; train on 2 images or more at a time, or at more than {coarsest} pixels"
        )
    if config.backbone_weights and job.state is None:
        start_backbone_from(network, config.backbone_weights, records, size, preprocessing)
    network.spec = dataclasses.replace(network.spec, image_size=size)
    tiles = tile_side(job.data)
    return network, CheckpointInfo(
        spec=network.spec,
        class_names=records.class_names,
        category_ids=records.category_ids,
        preprocessing=preprocessing,
        postprocess={"tiles": tiles} if tiles else {},
        training={"data": job.data.name, **to_dict(config)},
    )
