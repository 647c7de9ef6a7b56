"""The rows of released weights, and COCO's classes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from efficientdet.family import MODELS, VARIANTS, find_spec
from efficientdet.images.letterbox import IMAGENET, LITE
from efficientdet.weights import registry
from efficientdet.weights.registry import ADVPROP, COCO_CATEGORIES, COCO_CATEGORY_IDS, COCO_CLASS_NAMES, RELEASED


# ---- rows
def test_every_model_of_the_family_has_released_weights() -> None:
    assert {*MODELS, *VARIANTS} <= RELEASED.keys()
    assert {f"d{i}-ap" for i in range(6)} <= RELEASED.keys()
    assert len(RELEASED) == 23


@pytest.mark.parametrize("row", RELEASED.values(), ids=RELEASED)
def test_a_row_says_all_that_is_needed(row: registry.ReleasedWeights) -> None:
    assert find_spec(row.model).name == row.model
    assert re.fullmatch(
        r"https://github\.com/rwightman/efficientdet-pytorch/releases/download/v0\.1/[\w-]+\.pth", row.url
    )
    assert re.fullmatch(r"[0-9a-f]{8}", row.sha256_prefix)
    assert row.file.endswith(f"-{row.sha256_prefix}.pth")
    assert 25 < row.ap < 56
    theirs = f"tf_efficientdet_{row.name}".replace("-", "_")
    if row.name.endswith("-symmetric"):
        theirs = f"efficientdet_{row.name.removesuffix('-symmetric')}"
    assert re.match(theirs + r"(_\d\d)?-", row.file)


def test_no_two_rows_share_a_file() -> None:
    assert len({row.url for row in RELEASED.values()}) == len(RELEASED)
    assert len({row.sha256_prefix for row in RELEASED.values()}) == len(RELEASED)


def test_pixels_are_those_of_the_training() -> None:
    for row in RELEASED.values():
        lite = find_spec(row.model).normalization == "lite"
        assert row.preprocessing == (ADVPROP if row.name.endswith("-ap") else LITE if lite else IMAGENET)
    # x * 2 / 255 - 1
    for pixel, number in ((0, -1.0), (255, 1.0)):
        assert (pixel - ADVPROP.mean[0]) / ADVPROP.std[0] == number


# ---- classes
def test_labels_are_cocos_ids_less_one() -> None:
    assert len(COCO_CATEGORIES) == 80
    assert COCO_CATEGORY_IDS == tuple(range(1, 91))
    assert (COCO_CLASS_NAMES[0], COCO_CLASS_NAMES[16], COCO_CLASS_NAMES[89]) == ("person", "cat", "toothbrush")
    assert len(set(COCO_CLASS_NAMES)) == 90
    unused = [i for i in COCO_CATEGORY_IDS if COCO_CLASS_NAMES[i - 1].startswith("unused")]
    assert unused == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert COCO_CLASS_NAMES[11] == "unused-12"


def test_classes_are_those_of_cocos_annotations(shared_data: Path) -> None:
    categories = json.loads((shared_data / "coco_tiny" / "instances.json").read_text())["categories"]
    assert {category["id"]: category["name"] for category in categories} == COCO_CATEGORIES
