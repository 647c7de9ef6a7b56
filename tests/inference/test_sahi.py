"""The adapter for SAHI in examples/, with SAHI itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.images.find import sample_image
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load

pytest.importorskip("sahi", reason="sahi is missing (dependency group dev)")
PROGRAM = Path(__file__).parents[2] / "examples" / "sahi_model.py"


@pytest.fixture(scope="module", autouse=True)
def limit_of_pixels() -> Iterator[None]:
    """Pillow's limit, which SAHI takes away when it is imported."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture(scope="module")
def people() -> Detector:
    return load("people", backend="eager")


@pytest.fixture(scope="module")
def model(people: Detector) -> Any:
    spec = importlib.util.spec_from_file_location("sahi_model", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EfficientDetModel(model=people, confidence_threshold=0.3)


def boxes_of(result: Any) -> list[list[float]]:
    return sorted([float(side) for side in one.bbox.to_xyxy()] for one in result.object_prediction_list)


def test_a_whole_image_gives_the_boxes_of_predict(model: Any, people: Detector) -> None:
    from sahi.predict import get_prediction

    image = read(sample_image())
    result = get_prediction(image, model)
    expected = people.predict(image, score_threshold=0.3)
    assert boxes_of(result) == pytest.approx(np.array(sorted(expected.boxes_xyxy.tolist())), abs=0.01)
    assert {one.category.name for one in result.object_prediction_list} == {"person"}


def test_slices_are_predicted_together_and_put_in_their_places(model: Any, people: Detector) -> None:
    from sahi.predict import get_sliced_prediction

    person = read(sample_image())
    height, width = person.shape[:2]
    image = np.zeros((height, 2 * width, 3), np.uint8)
    image[:, width:] = person  # the right one of two slices; in the left one nothing is certain
    result = get_sliced_prediction(
        image, model, slice_height=height, slice_width=width, overlap_height_ratio=0, overlap_width_ratio=0,
        perform_standard_pred=False, batch_size=2, verbose=0, postprocess_type="NMS", postprocess_match_metric="IOU",
    )  # fmt: skip
    expected = people.predict(person, score_threshold=0.3).boxes_xyxy + [width, 0, width, 0]
    best = np.array([box for box in boxes_of(result) if box[0] >= width])
    assert len(best) >= 1
    assert np.abs(best[:, None] - expected[None]).max(2).min(1) == pytest.approx(0, abs=1.5)


def test_the_program_prints_what_it_finds() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "people", str(sample_image())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert any(one["class"] == "person" and one["score"] > 0.5 for one in found)
