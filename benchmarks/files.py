"""The files that both sides of a case are given: a picture, and weights that behave like trained ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from efficientdet.research.benchmark.sources import default_picture

# Of the pictures in a folder, (width, height).
FOLDER_SIZES = ((640, 480), (480, 640), (500, 375), (640, 427), (800, 600))
CALIBRATION_PICTURES = 8


class Files:
    """Makes each file once.

    Attributes:
        folder: where they lie.
        picture: a 640x480 JPEG.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.picture = folder / "picture.jpg"
        default_picture(self.picture)

    def checkpoint(self, name: str, size: int) -> str:
        """A network with random weights, as `load` takes it."""
        from efficientdet.research.benchmark.random_weights import write_random

        return self._made(f"{name}-{size}.safetensors", lambda path: write_random(name, size, self.picture, path))

    def effdet_weights(self, name: str, size: int) -> str:
        """The same weights under effdet's names."""
        import torch

        from efficientdet.weights.checkpoint import load_checkpoint
        from efficientdet.weights.foreign import to_foreign

        source = self.checkpoint(name, size)
        return self._made(
            f"{name}-{size}.pt", lambda path: torch.save(to_foreign(load_checkpoint(source)[0], "effdet"), path)
        )

    def int8(self, name: str, size: int) -> str:
        """The same network in 8-bit integers for OpenVINO, its ranges taken from crops of the picture."""
        from efficientdet.data.records import ImageRecord, Records
        from efficientdet.exporting.quantize import quantize

        source = self.checkpoint(name, size)
        folder = self.folder / "calibration"
        if not folder.exists():
            folder.mkdir()
            make_crops(self.picture, folder, CALIBRATION_PICTURES)
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32)
        images = [
            ImageRecord(number, path, *FOLDER_SIZES[number % len(FOLDER_SIZES)], *none, [])
            for number, path in enumerate(sorted(folder.iterdir()))
        ]
        records = Records(images, ("thing",), (1,), folder)

        def write(path: Path) -> None:
            quantize(source, records, path, calibration_images=CALIBRATION_PICTURES, check=False)

        return self._made(f"{name}-{size}-int8.xml", write)

    def pictures(self, count: int) -> list[str]:
        """Crops of the picture in several sizes."""
        folder = self.folder / f"pictures-{count}"
        if not folder.exists():
            folder.mkdir()
            make_crops(self.picture, folder, count)
        return [str(path) for path in sorted(folder.iterdir())]

    def _made(self, name: str, write: Callable[[Path], object]) -> str:
        path = self.folder / name
        if not path.exists():
            write(path)
        return str(path)


def make_crops(picture: Path, folder: Path, count: int) -> None:
    """Write crops of a picture, scaled to the sizes in turn; always the same ones."""
    random = np.random.default_rng(0)
    with Image.open(picture) as whole:
        whole = whole.convert("RGB")
    for number in range(count):
        width, height = FOLDER_SIZES[number % len(FOLDER_SIZES)]
        left, top = random.uniform(0, 0.3, 2) * whole.size
        right, bottom = random.uniform(0.7, 1, 2) * whole.size
        crop = whole.resize((width, height), box=(left, top, right, bottom))
        crop.save(folder / f"{number:04}.jpg", quality=90)
