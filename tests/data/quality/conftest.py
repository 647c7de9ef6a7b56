"""Small datasets of real image files, with whatever boxes a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

Boxes = Sequence[tuple[int, list[float]]]  # category id and xywh


class Written(NamedTuple):
    """An image as it stands in a file of annotations."""

    name: str
    boxes: Boxes = ()
    width: int = 160
    height: int = 120
    seed: int | None = None  # of its pixels; by default its own
    orientation: int = 1
    states_size: bool = True
    extra: dict[str, Any] | None = None  # of its annotations


def pixels(seed: int, width: int, height: int) -> Image.Image:
    """An image with large random patches, unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def write_split(folder: Path, split: str, images: Sequence[Written], classes: Sequence[str] = ("x", "y")) -> Path:
    """Write images and a COCO JSON; ids count from 1 in their order. Sizes are those of the upright image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "info": {"description": "made for a test"}, "images": [], "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }  # fmt: skip
    for number, image in enumerate(images, start=1):
        path = folder / "images" / image.name
        sideways = image.orientation >= 5
        raw = (image.height, image.width) if sideways else (image.width, image.height)
        if not path.exists():
            seed = image.seed if image.seed is not None else sum(map(ord, f"{split}{image.name}"))
            exif = Image.Exif()
            if image.orientation > 1:
                exif[274] = image.orientation
            pixels(seed, *raw).save(path, exif=exif, quality=92)
        size = {"width": image.width, "height": image.height} if image.states_size else {}
        content["images"].append({"id": number, "file_name": image.name, **size})
        for category, xywh in image.boxes:
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": category, "bbox": xywh,
                 "area": abs(xywh[2] * xywh[3]), "iscrowd": 0, **(image.extra or {})}
            )  # fmt: skip
    (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def write() -> Callable[..., Path]:
    """`write_split`."""
    return write_split


@pytest.fixture
def written() -> type[Written]:
    """`Written`."""
    return Written
