"""Detections of a batch -> COCO results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from efficientdet.data.records import ImageRecord, Records
from efficientdet.evaluation.results import batch_results
from efficientdet.inference.postprocess import BatchDetections


def records(ids: list[int | str]) -> Records:
    images = [
        ImageRecord(
            image_id,
            Path(f"{i}.png"),
            50,
            40,
            np.array([[1, 2, 11, 22]], dtype=np.float32),
            np.array([i % 2]),
            np.array([i == 2]),
            np.array([150], dtype=np.float32),
            [f"a{i}"],
        )  # fmt: skip
        for i, image_id in enumerate(ids)
    ]
    return Records(images, ("cat", "dog"), (9, 4), Path("here"))


def test_results_are_xywh_with_the_data_sets_categories_up_to_the_count() -> None:
    found = BatchDetections(
        torch.tensor([[[1.0, 2, 4, 8], [0, 0, 1, 1]], [[3.0, 3, 9, 5], [2, 2, 3, 4]]]),
        torch.tensor([[0.75, 0.5], [0.25, 0.125]]),
        torch.tensor([[1, 0], [0, 1]]),
        torch.tensor([1, 2]),
        torch.zeros(2, 2, dtype=torch.int64),
    )
    assert batch_results(found, [2, 0], records([10, 20, 30])) == [
        {"image_id": 30, "category_id": 4, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75},
        {"image_id": 10, "category_id": 9, "bbox": [3.0, 3.0, 6.0, 2.0], "score": 0.25},
        {"image_id": 10, "category_id": 4, "bbox": [2.0, 2.0, 1.0, 2.0], "score": 0.125},
    ]
