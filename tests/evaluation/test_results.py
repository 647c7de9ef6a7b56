"""Detections of a batch -> COCO results, and records -> ground truth, with ids that agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from efficientdet.data.records import ImageRecord, Records
from efficientdet.evaluation.results import batch_results, evaluator_ids, ground_truth
from efficientdet.inference.postprocess import BatchDetections


def records(ids: list[int | str]) -> Records:
    images = [
        ImageRecord(
            image_id, Path(f"{i}.png"), 50, 40, np.array([[1, 2, 11, 22]], dtype=np.float32), np.array([i % 2]),
            np.array([i == 2]), np.array([150], dtype=np.float32), [f"a{i}"],
        )  # fmt: skip
        for i, image_id in enumerate(ids)
    ]
    return Records(images, ("cat", "dog"), (9, 4), Path("here"))


@pytest.mark.parametrize("ids", [[5, 0, 17], ["b", "a", "c"], ["7", 7, "x"]])
def test_pictures_have_the_same_distinct_integer_ids_in_both(ids: list[int | str]) -> None:
    data = records(ids)
    numbers = evaluator_ids(data)
    assert len(set(numbers)) == 3 and all(type(number) is int for number in numbers)
    if all(isinstance(image_id, int) for image_id in ids):
        assert numbers == ids
    truth = ground_truth(data)
    assert [image["id"] for image in truth["images"]] == numbers
    assert [annotation["image_id"] for annotation in truth["annotations"]] == numbers
    found = BatchDetections(torch.zeros(3, 1, 4), torch.ones(3, 1), torch.zeros(3, 1).long(), torch.ones(3).long())
    assert [row["image_id"] for row in batch_results(found, [0, 1, 2], data)] == numbers


def test_ground_truth_has_the_data_sets_categories_and_crowds() -> None:
    data = records(["b", "a", "c"])
    truth = ground_truth(data)
    assert truth["categories"] == [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}]
    assert [a["category_id"] for a in truth["annotations"]] == [9, 4, 9]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1]
    assert truth["annotations"][0]["bbox"] == [1, 2, 10, 20] and truth["annotations"][0]["area"] == 150
    assert [record.image_id for record in data.images] == ["b", "a", "c"]  # the records stay as they are


def test_results_are_xywh_with_the_data_sets_categories_up_to_the_count() -> None:
    found = BatchDetections(
        torch.tensor([[[1.0, 2, 4, 8], [0, 0, 1, 1]], [[3.0, 3, 9, 5], [2, 2, 3, 4]]]),
        torch.tensor([[0.75, 0.5], [0.25, 0.125]]),
        torch.tensor([[1, 0], [0, 1]]),
        torch.tensor([1, 2]),
    )
    assert batch_results(found, [2, 0], records([10, 20, 30])) == [
        {"image_id": 30, "category_id": 4, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75},
        {"image_id": 10, "category_id": 9, "bbox": [3.0, 3.0, 6.0, 2.0], "score": 0.25},
        {"image_id": 10, "category_id": 4, "bbox": [2.0, 2.0, 1.0, 2.0], "score": 0.125},
    ]
