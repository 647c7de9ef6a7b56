"""A data set of colored shapes and a network small enough to train on it in a second."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from efficientdet.family import find_spec
from efficientdet.network.efficientnet import SCALES

# For processes of their own, which know the released backbones alone.
LITE = dataclasses.replace(find_spec("lite0"), width=16, depth=1, head_depth=1, image_size=64)
# Ten blocks of few channels instead of lite0's sixteen: more than half of a tiny run's time went into those.
SCALES["lite-tiny"] = (0.1, 0.5)
TINY = dataclasses.replace(LITE, backbone="lite-tiny")
# Of every run: three steps an epoch on six pictures, in the arithmetic that is the same everywhere.
SETTINGS: dict[str, Any] = {
    "recipe": "paper", "epochs": 3, "batch_size": 2, "precision": "fp32", "device": "cpu", "save_every": 99,
    "workers": 0, "quiet": True,
}  # fmt: skip


def write_shapes(
    folder: Path,
    pictures: Mapping[str, int] | None = None,
    classes: Sequence[str] = ("disc", "square"),
    with_boxes: Sequence[str] = ("train", "val", "test"),
    seed: int = 0,
) -> Path:
    """Write a COCO data set of discs and squares, 64 to 96 pixels a side, one to three a picture.

    Args:
        folder: made anew.
        pictures: how many by split; by default six to train on and none else.
        classes: names of the two classes; their ids are 3 and 7.
        with_boxes: the splits that have any.
        seed: of the pictures.

    Returns:
        The folder.
    """
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for split, count in (pictures or {"train": 6}).items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in range(1, count + 1):
            width, height = (int(side) for side in random.integers(64, 97, 2))
            name = f"{split}{image_id}.png"
            picture = Image.new("RGB", (width, height), (40, 40, 90))
            draw = ImageDraw.Draw(picture)
            for _ in range(int(random.integers(1, 4)) if split in with_boxes else 0):
                side, label = int(random.integers(16, 40)), int(random.integers(0, 2))
                x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
                shape = draw.rectangle if label else draw.ellipse
                shape((x, y, x + side - 1, y + side - 1), fill=(230, 220, 40) if label else (220, 60, 60))
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image_id, "category_id": (3, 7)[label],
                     "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
                )  # fmt: skip
            picture.save(folder / "images" / name)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        categories = [{"id": 3, "name": classes[0]}, {"id": 7, "name": classes[1]}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder
