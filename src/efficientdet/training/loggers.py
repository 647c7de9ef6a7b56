"""Loggers by name, all of them Lightning's own, and the images that a run leaves."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from PIL import Image

from efficientdet.atomic_write import replacing
from efficientdet.data.dataset import Batch, decode
from efficientdet.errors import require
from efficientdet.images.draw import draw_boxes
from efficientdet.images.letterbox import Preprocessing
from efficientdet.settings import to_dict
from efficientdet.training.module import DetectionModule
from efficientdet.training.prepare import Job

if TYPE_CHECKING:
    from efficientdet.images.convert import RgbImage

# Name of the project, or experiment, under which runs are found in W&B and MLflow.
PROJECT = "efficientdet"
# Batches of the first epoch, and images of the validation split, that are drawn; in rows of tiles of this side.
BATCHES, PREDICTIONS, MOST_TILES, ACROSS, TILE = 3, 6, 16, 4, 320
# Scores from which predictions are drawn.
SHOWN_SCORE = 0.3


def build_loggers(job: Job) -> list[Logger]:
    """The loggers that the settings name.

    Raises:
        MissingExtraError: a logger's library is not installed; gives the pip command.
    """
    makers = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    loggers = [makers[name](job) for name in job.config.logger]
    for logger in loggers if job.state is None else []:
        logger.log_hyperparams({"model": getattr(job.model, "name", job.model), **to_dict(job.config)})
    return loggers


def _csv(job: Job) -> Logger:
    """The log as CSV. A resumed run keeps the rows up to its saved step, which Lightning would delete."""
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


def _tensorboard(job: Job) -> Logger:
    require("tensorboard", "train")
    return TensorBoardLogger(job.folder, "", "log", default_hp_metric=False)


def _wandb(job: Job) -> Logger:
    """Weights & Biases; WANDB_MODE=offline keeps the log in the run's folder."""
    require("wandb", "wandb")
    folder = job.folder / "log"
    folder.mkdir(exist_ok=True)
    identity = _identity(folder / "wandb.txt") or _keep_identity(folder / "wandb.txt", secrets.token_hex(4))
    return WandbLogger(job.folder.name, folder, version=identity, project=PROJECT, resume="allow")


def _mlflow(job: Job) -> Logger:
    """MLflow, at $MLFLOW_TRACKING_URI, or else in a database in the run's folder."""
    require("mlflow", "mlflow")
    folder = (job.folder / "log").resolve()
    folder.mkdir(exist_ok=True)
    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    files = None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "mlflow").as_uri()
    logger = MLFlowLogger(
        PROJECT, job.folder.name, place, artifact_location=files, run_id=_identity(folder / "mlflow.txt")
    )
    _keep_identity(folder / "mlflow.txt", str(logger.run_id))
    return logger


def _identity(path: Path) -> str | None:
    """The id under which a logger knows the run that is resumed."""
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _keep_identity(path: Path, identity: str) -> str:
    if getattr(rank_zero_only, "rank", 0) == 0:  # the loggers of other devices log nothing
        path.write_text(identity, encoding="utf-8")
    return identity


class SampleImages(Callback):
    """Draws the first augmented batches, and predictions on a few images at each evaluation.

    They lie in `images/` of the run's folder, and go to the loggers that take images.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.folder = folder / "images"
        self.preprocessing = preprocessing

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Draw one of the first batches, as it goes into the network."""
        if trainer.current_epoch > 0 or batch_idx >= BATCHES or not trainer.is_global_zero:
            return
        module: DetectionModule = pl_module  # type: ignore[assignment]
        names = module.train_set.records.class_names
        tiles = []
        for i in range(min(MOST_TILES, len(batch.indices))):
            boxes, labels = batch.boxes_xyxy[i].cpu().numpy(), batch.labels[i].cpu().numpy()
            image = self._pixels(batch.images[i])
            tiles.append(draw_boxes(image, boxes, np.ones(len(labels), np.float32), labels, names))
        self._keep(trainer, f"train_batch_{batch_idx + 1}", tiles)

    def _pixels(self, image: torch.Tensor) -> RgbImage:
        """(H, W, 3) uint8 RGB of a normalized (3, H, W) image."""
        mean, std = (np.array(values, np.float32) for values in (self.preprocessing.mean, self.preprocessing.std))
        pixels: NDArray[np.float32] = image.float().cpu().numpy().transpose(1, 2, 0) * std + mean
        return np.ascontiguousarray(np.nan_to_num(pixels).round().clip(0, 255).astype(np.uint8))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw annotations (left) and predictions (right) of a few images, the same ones each time."""
        module: DetectionModule = pl_module  # type: ignore[assignment]
        if module.val_set is None or not trainer.is_global_zero or trainer.sanity_checking:
            return
        shown = [image for image in module.val_set.records.images if image.image_id in module.detections]
        tiles, names = [], module.val_set.records.class_names
        for image in shown[:: max(1, len(shown) // PREDICTIONS)][:PREDICTIONS]:
            pixels, objects = decode(image), ~image.is_ignored
            ones = np.ones(int(objects.sum()), np.float32)
            tiles.append(draw_boxes(pixels, image.boxes_xyxy[objects], ones, image.labels[objects], names))
            tiles.append(module.detections[image.image_id].filter(SHOWN_SCORE).draw(pixels))
        self._keep(trainer, "predictions", tiles)

    def _keep(self, trainer: Trainer, name: str, tiles: list[Image.Image]) -> None:
        """Write tiles as one image, and hand it to the loggers that take images."""
        if not tiles:
            return
        sheet = contact_sheet(tiles, ACROSS)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"{name}.jpg") as temporary:
            sheet.save(temporary, "JPEG", quality=88)
        log_image(trainer.loggers, name, sheet, trainer.global_step)


def contact_sheet(tiles: list[Image.Image], across: int) -> Image.Image:
    """Images side by side in rows of `across`, each shrunk to fit a tile."""
    across = min(across, len(tiles))
    sheet = Image.new("RGB", (across * TILE, -(-len(tiles) // across) * TILE), (24, 24, 24))
    for number, tile in enumerate(tiles):
        tile.thumbnail((TILE, TILE))
        sheet.paste(tile, (number % across * TILE, number // across * TILE))
    return sheet


def log_image(loggers: Iterable[Any], name: str, image: Image.Image, step: int) -> None:
    """Hand an image to the loggers that take images."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, f"{name}.png")
