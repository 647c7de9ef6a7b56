"""What both sides of a case are given: images, and a network with the same weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from efficientdet.atomic_write import replacing
from efficientdet.data.read_split import read_split
from efficientdet.data.records import ImageRecord, Records
from efficientdet.exporting.export import write_int8
from efficientdet.exporting.formats import spread
from efficientdet.exporting.settings import QuantizeSettings
from efficientdet.family import MODELS
from efficientdet.images.read import image_size
from efficientdet.inference.benchmark import sample_jpeg
from efficientdet.weights.checkpoint import load_checkpoint, save_checkpoint
from efficientdet.weights.create import random_model
from efficientdet.weights.foreign import to_foreign
from efficientdet.weights.names import find_weights

# The dataset with people in it, whose ground truth is compared with.
SHARED = Path(os.environ.get("EFFICIENTDET_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PEOPLE = SHARED / "data" / "people"
# (width, height) of the images of a folder.
FOLDER_SIZES = ((640, 480), (480, 640), (500, 375), (640, 427), (800, 600))
CALIBRATION_IMAGES = 64


def _unlabeled(paths: list[str]) -> Records:
    boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    crowds, areas = np.zeros(0, bool), np.zeros(0, np.float32)
    images = [
        ImageRecord(number, Path(path), *image_size(path)[::-1], boxes, labels, crowds, areas, [])
        for number, path in enumerate(paths)
    ]
    return Records(images, ("thing",), (1,), Path(paths[0]).parent)


def people(count: int) -> Records:
    """The first images of the validation split.

    Raises:
        DataError: the dataset is not there; says where it was sought.
    """
    records = read_split(PEOPLE, "val")
    return dataclasses.replace(records, images=records.images[:count])


class Network(NamedTuple):
    """A network as both sides take it.

    Attributes:
        checkpoint: what `load` takes.
        weights: the same weights under effdet's names.
        network: its name in the family.
        size: side of its input.
        num_classes: classes of its head.
        mean: of R, G, B in 0..255.
        std: of R, G, B in 0..255.
    """

    checkpoint: str
    weights: str
    network: str
    size: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Files:
    """Makes each file once.

    Attributes:
        folder: where they lie.
        image: a 640x480 JPEG.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = folder / "sample.jpg"
        self.image.write_bytes(sample_jpeg())

    def network(self, name: str, size: int | None = None) -> Network:
        """A network: bundled (`people`), or of the family, with weights from a fixed seed.

        Args:
            name: bundled or of the family.
            size: side of the input; None for its own.
        """
        checkpoint = str(find_weights(name)) if name not in MODELS else self._seeded(name, size)
        model, info = load_checkpoint(checkpoint)
        weights = self._made(f"{name}-{size}.pt", lambda path: torch.save(to_foreign(model, "effdet"), path))
        size, pixels = size or info.spec.image_size, info.preprocessing
        return Network(checkpoint, weights, info.spec.name, size, len(info.class_names), pixels.mean, pixels.std)

    def _seeded(self, name: str, size: int | None) -> str:
        def write(path: Path) -> None:
            model, info = random_model(name, size, self.image)
            save_checkpoint(path, model.state_dict(), info)

        return self._made(f"{name}-{size}.safetensors", write)

    def int8(self, name: str, size: int | None = None) -> str:
        """The network in 8-bit integers for OpenVINO, calibrated on images of people, or on crops."""
        if PEOPLE.is_dir():
            records = read_split(PEOPLE, "train")
        else:
            records = _unlabeled(self.crops(CALIBRATION_IMAGES))
        source = self.network(name, size).checkpoint

        def write(path: Path) -> None:
            from efficientdet.inference.detector import load

            calibration = spread(records.images, CALIBRATION_IMAGES)
            with replacing(path) as file:
                write_int8(load(source, image_size=size), calibration, file, QuantizeSettings(), {})

        return self._made(f"{name}-{size}-int8.xml", write)

    def images(self, kind: str, count: int) -> list[str]:
        """Paths of images; see `cases.Case`."""
        if kind == "people":
            return [str(record.path) for record in people(count).images]
        return [str(self.image)] if kind == "sample" else self.crops(count)

    def crops(self, count: int) -> list[str]:
        """Crops of the image in several sizes, the same at every call."""
        folder = self.folder / f"crops-{count}"
        if not folder.exists():
            folder.mkdir()
            random = np.random.default_rng(0)
            whole = Image.open(self.image).convert("RGB")
            for number in range(count):
                left, top = random.uniform(0, 0.3, 2) * whole.size
                right, bottom = random.uniform(0.7, 1, 2) * whole.size
                size = FOLDER_SIZES[number % len(FOLDER_SIZES)]
                whole.resize(size, box=(left, top, right, bottom)).save(folder / f"{number:04}.jpg", quality=90)
        return [str(path) for path in sorted(folder.iterdir())]

    def _made(self, name: str, write: Callable[[Path], Any]) -> str:
        path = self.folder / name
        if not path.exists():
            write(path)
        return str(path)
