"""The reference's detections from the same raw head outputs: candidates, hard NMS and soft-NMS."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientdet.boxes import clip_boxes, decode_deltas
from efficientdet.family import MODELS, level_sizes
from efficientdet.inference.postprocess import postprocess, select_candidates
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.network.anchors import make_anchors

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "postprocess.json").read_bytes())
SCENARIOS: list[Any] = GOLDEN["scenarios"]
BOX_TOLERANCE = 1e-3  # pixels
SCORE_TOLERANCE = 2e-6

scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])


def _heads(scenario: dict[str, Any], filler: ModuleType) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Class logits, box deltas (x before y) and anchors of a scenario."""
    image_size, classes = (scenario["height"], scenario["width"]), scenario["num_classes"]
    sizes = level_sizes(image_size, MODELS["d0"].levels)
    raw_classes, raw_boxes = filler.head_outputs(scenario["head_seed"], 1, sizes, classes)
    logits = [
        (torch.from_numpy(x) + scenario["class_shift"]).permute(0, 2, 3, 1).reshape(1, -1, classes) for x in raw_classes
    ]
    deltas = [torch.from_numpy(x).permute(0, 2, 3, 1).reshape(1, -1, 4)[..., [1, 0, 3, 2]] for x in raw_boxes]
    return logits, deltas, make_anchors(MODELS["d0"], image_size)


def _picture(scenario: dict[str, Any]) -> dict[str, Tensor]:
    """Keywords of `postprocess` that say how the original picture lay in the network's input."""
    if scenario["img_scale"] is None:
        return {}
    width, height = scenario["img_size_wh"]
    return {
        "scales": torch.tensor([1 / scenario["img_scale"]]),
        "image_sizes": torch.tensor([[height, width]], dtype=torch.float32),
    }


def _detections(scenario: dict[str, Any], filler: ModuleType, settings: PostprocessSettings) -> Any:
    """Rows [x1, y1, x2, y2, score, class], as the goldens have them."""
    found = postprocess(*_heads(scenario, filler), settings, **_picture(scenario))
    count = int(found.counts[0])
    columns = [found.boxes_xyxy[0, :count], found.scores[0, :count, None], found.labels[0, :count, None]]
    return torch.cat(columns, 1).double().numpy()


def _check(rows: Any, expected: Any, score_tolerance: float = SCORE_TOLERANCE) -> None:
    assert len(rows) == len(expected)
    assert rows[:, 5].tolist() == expected[:, 5].tolist()
    assert np.abs(rows[:, :4] - expected[:, :4]).max() <= BOX_TOLERANCE
    assert np.abs(rows[:, 4] - expected[:, 4]).max() <= score_tolerance


@scenarios
def test_candidates(scenario: dict[str, Any], filler: ModuleType) -> None:
    logits, deltas, anchors = _heads(scenario, filler)
    expected = scenario["candidates"]
    found = select_candidates(logits, scenario["max_candidates"], 0.0)
    flat = found.anchor_indices[0] * scenario["num_classes"] + found.labels[0]
    assert flat.shape == (scenario["max_candidates"],)
    assert flat[:8].tolist() == expected["first_flat_indices"]
    assert int(flat.sum()) == expected["index_sum"]
    assert np.allclose(found.logits[0, :8], expected["first_logits"], rtol=1e-7, atol=0)
    assert found.logits.min().item() == pytest.approx(expected["lowest_logit"], rel=1e-7)

    best = found.anchor_indices[0, :4]
    boxes = decode_deltas(torch.cat(deltas, 1)[:, best], anchors[best])
    if scenario["img_scale"] is not None:
        width, height = scenario["img_size_wh"]
        boxes = clip_boxes(boxes, torch.tensor([[height, width]]) / scenario["img_scale"])
    assert np.abs(boxes[0].numpy() - np.array(expected["decoded_first"])).max() <= BOX_TOLERANCE


@scenarios
def test_hard_nms(scenario: dict[str, Any], filler: ModuleType) -> None:
    limits = {key: scenario[key] for key in ("max_candidates", "max_detections")}
    rows = _detections(scenario, filler, PostprocessSettings(score_threshold=0.0, nms="hard", **limits))
    _check(rows, np.array(scenario["hard"]["detections"]))


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(s, id=s["name"], marks=[pytest.mark.slow] if s["height"] == s["width"] else []) for s in SCENARIOS],
)
def test_hard_nms_survivors_without_a_cut(scenario: dict[str, Any], filler: ModuleType) -> None:
    settings = PostprocessSettings(score_threshold=0.0, max_candidates=scenario["max_candidates"], max_detections=5000)
    assert len(_detections(scenario, filler, settings)) == scenario["hard"]["kept_total"]


@pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS if "soft_effdet" in s], ids=lambda scenario: scenario["name"]
)
def test_soft_nms(scenario: dict[str, Any], filler: ModuleType) -> None:
    limits = {key: scenario[key] for key in ("max_candidates", "max_detections")}
    settings = PostprocessSettings(score_threshold=0.001, nms="soft", sigma=0.5, **limits)
    rows = _detections(scenario, filler, settings)
    _check(rows, np.array(scenario["soft_effdet"]["detections"]))
    assert np.abs(rows[:, 4] - np.array(scenario["soft_exact"]["scores"])).max() <= SCORE_TOLERANCE
