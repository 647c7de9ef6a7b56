"""A made-up evaluation of real image files, with every kind of mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from efficientdet.data.records import ImageRecord, Records
from efficientdet.evaluation.coco_ap import Metrics

CAT, DOG = 0, 1
# The category ids are not in the order of the labels.
IDS = (8, 3)
BOX, FAR, SMALL = (0.0, 0.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (100.0, 10.0, 112.0, 22.0)
Found = tuple[tuple[float, float, float, float], int, float]


class Evaluation(NamedTuple):
    """Metrics with their matches, and the images."""

    metrics: Metrics
    records: Records


@pytest.fixture
def evaluation(tmp_path: Path) -> Callable[..., Evaluation]:
    """Makes an evaluation: a cat in every image but none in every fifth, found but in the last two.

    In the last but one a dog is seen in its place, in the last a dog far away.
    """
    pytest.importorskip("faster_coco_eval")
    from efficientdet.evaluation.coco_ap import metrics_of
    from efficientdet.evaluation.matching import match, read_table

    def make(
        images: int = 6, name: str = "cat", size: tuple[int, int] = (120, 100), more: list[Found] | None = None
    ) -> Evaluation:
        random = np.random.default_rng(0)
        file = tmp_path / "image.jpg"
        pixels = random.integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(file, quality=95)
        records, results = [], []
        for number in range(images):
            own: list[Found] = [(BOX, CAT, 0.9 - number / images / 10)]
            if number == images - 2:
                own = [(BOX, DOG, 0.85)]
            elif number == images - 1:
                own = [(FAR, DOG, 0.95), *(more or [])]
            boxes = np.array([BOX], np.float32)
            record = ImageRecord(
                f"id {number}",
                file,
                *size,
                boxes,
                np.array([CAT]),
                np.array([False]),
                np.full(1, 2500, np.float32),
                [number],
            )
            records.append(record)
            for place, (box, label, score) in enumerate(own):
                corners = [*box[:2], box[2] - box[0], box[3] - box[1]]
                row: dict[str, Any] = {"image_id": record.image_id, "category_id": IDS[label], "bbox": corners}
                results.append(row | {"score": score, "number": place})
        dataset = Records(records, (name, "dog"), IDS, tmp_path)
        table = read_table(dataset.to_coco(), results)
        metrics = dataclasses.replace(metrics_of(table), matches=match(table), images_per_second=12.5)
        return Evaluation(metrics, dataset)

    return make
