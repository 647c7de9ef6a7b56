"""Detections of models that were not trained on the image: the dataset in parts, a model for the rest of each."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.data.records import ImageRecord, Records
from efficientdet.detections import Detections
from efficientdet.errors import SettingError
from efficientdet.family import ModelSpec
from efficientdet.inference.detector import load
from efficientdet.training.run import train

# Fewer images than this leave too little to train on.
FEWEST_IMAGES = 4


def out_of_fold(
    splits: Sequence[Records],
    model: str | ModelSpec,
    folds: int,
    score_threshold: float,
    say: Callable[[str], None],
    **settings: Any,
) -> list[list[Detections]]:
    """Detections on every image by a model that was trained on the images of the other parts.

    Args:
        splits: records with the same classes; all their images are divided.
        model: what to train.
        folds: number of parts, and of models.
        score_threshold: lowest score of a detection.
        say: called with a line before each training.
        **settings: fields of `TrainConfig`.

    Returns:
        For each split, detections on each of its images, in order.

    Raises:
        SettingError: there are too few images, or the splits have other classes.
    """
    images = [record for records in splits for record in records.images]
    if len(images) < max(folds, FEWEST_IMAGES):
        raise SettingError(f"folds is {folds}, but there are {len(images)} images; give weights instead")
    if len({records.class_names for records in splits}) > 1:
        raise SettingError("the splits have different classes, so no model can be trained on all; correct that first")
    part_of = np.random.default_rng(0).permutation(len(images)) % folds
    found: dict[int, Detections] = {}
    for part in range(folds):
        say(f"part {part + 1} of {folds}: training on {int((part_of != part).sum())} images")
        with tempfile.TemporaryDirectory(prefix="efficientdet-folds-") as name:
            others = [record for record, own in zip(images, part_of.tolist(), strict=True) if own != part]
            write_images(Path(name) / "data", others, splits[0])
            run = train(model, Path(name) / "data", out=Path(name) / "run", quiet=True, **settings)
            detector = load(run.best, score_threshold=score_threshold, device=settings.get("device", "auto"))
            chosen = np.flatnonzero(part_of == part).tolist()
            found |= dict(zip(chosen, detector.predict_many([images[index].path for index in chosen]), strict=True))
    ordered = iter(found[index] for index in range(len(images)))
    return [[next(ordered) for _ in records.images] for records in splits]


def write_images(folder: Path, images: Sequence[ImageRecord], classes: Records) -> None:
    """Write `train.json` and the images as links, or as copies where links cannot be made."""
    renamed = []
    (folder / "images").mkdir(parents=True)
    for number, record in enumerate(images, start=1):
        target = folder / "images" / f"{number:06d}{record.path.suffix}"
        try:
            os.symlink(record.path.resolve(), target)
        except (OSError, NotImplementedError):
            shutil.copyfile(record.path, target)
        renamed.append(replace(record, image_id=number, path=target, file_name=target.name))
    (folder / "train.json").write_text(json.dumps(classes.of_images(renamed).to_coco()), encoding="utf-8")
