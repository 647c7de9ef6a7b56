"""Detections traced to their anchors, beside the network's own outputs there."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from efficientdet.boxes import decode_deltas
from efficientdet.errors import SettingError
from efficientdet.family import ModelSpec
from efficientdet.images.convert import RgbImage
from efficientdet.images.letterbox import letterbox
from efficientdet.inference.detector import Detector
from efficientdet.research.explanation import Anchor, NothingFoundError, explain_detection


@pytest.mark.parametrize("nms", ["hard", "soft", "matrix", "wbf"])
def test_a_detection_is_traced_to_the_outputs_at_its_anchor(detector: Detector, image: RgbImage, nms: Any) -> None:
    predictions = detector.predict(image, nms=nms)
    canvas, scale = letterbox(image, detector.image_size, detector.info.preprocessing)
    with torch.no_grad():
        class_logits, box_deltas = detector.model(torch.from_numpy(canvas)[None])
    levels = set()
    for index in range(0, min(len(predictions), 40), 13):
        found = explain_detection(detector, image, index, nms=nms)
        place, label = found.anchor, detector.class_names.index(found.class_name)
        levels.add(place.level)
        assert found.box_xyxy == pytest.approx(predictions.boxes_xyxy[index].tolist(), abs=1e-2)
        assert found.score == pytest.approx(float(predictions.scores[index]), abs=1e-5)
        assert label == predictions.labels[index]
        side = round(96 / place.stride[0])
        row = (((place.row * side + place.column) * 3) + place.octave) * 3 + detector.info.spec.aspects.index(
            place.aspect
        )
        logits = class_logits[place.level - 3][0, row]
        assert found.logit == pytest.approx(float(logits[label]), abs=1e-4)
        best = sorted(zip(logits.sigmoid().tolist(), detector.class_names, strict=True), reverse=True)
        assert found.classes == [{"class_name": name, "probability": pytest.approx(p, abs=1e-5)} for p, name in best]
        assert_is_the_anchor(place, detector.info.spec, scale)
        anchor = torch.tensor([place.box_xyxy])
        box = decode_deltas(box_deltas[place.level - 3][0, row][None], anchor)[0].clamp(min=0)
        box = torch.minimum(box, torch.tensor([170.0, 130.0, 170.0, 130.0]))
        if nms != "wbf":
            assert found.box_xyxy == pytest.approx(box.tolist(), abs=1e-2)
        if nms in ("hard", "wbf"):
            assert found.score == pytest.approx(float(logits[label].sigmoid()), abs=1e-5)
    assert len(levels) > 1


def assert_is_the_anchor(place: Anchor, spec: ModelSpec, scale: float) -> None:
    """The anchor stands on the middle of its cell, with its size."""
    left, top, right, bottom = place.box_xyxy
    middle = [(place.column + 0.5) * place.stride[1] / scale, (place.row + 0.5) * place.stride[0] / scale]
    assert [(left + right) / 2, (top + bottom) / 2] == pytest.approx(middle, abs=1e-3)
    side = spec.anchor_scale * place.stride[0] * 2 ** (place.octave / 3) / scale
    assert [right - left, bottom - top] == pytest.approx([side * place.aspect[0], side * place.aspect[1]], rel=1e-4)


def test_suppressed_candidates_are_those_that_come_back_without_suppression(
    detector: Detector, image: RgbImage
) -> None:
    everything = detector.predict(image, iou_threshold=1.0, max_detections=400)
    found = explain_detection(detector, image)
    left, top, right, bottom = everything.boxes_xyxy.T
    x = np.clip(np.minimum(right, found.box_xyxy[2]) - np.maximum(left, found.box_xyxy[0]), 0, None)
    y = np.clip(np.minimum(bottom, found.box_xyxy[3]) - np.maximum(top, found.box_xyxy[1]), 0, None)
    own = (found.box_xyxy[2] - found.box_xyxy[0]) * (found.box_xyxy[3] - found.box_xyxy[1])
    iou = x * y / ((right - left) * (bottom - top) + own - x * y)
    same = everything.labels == detector.class_names.index(found.class_name)
    assert found.suppressed == int((same & (iou > 0.5)).sum()) - 1 > 0


def test_the_model_is_left_as_it_was(detector: Detector, image: RgbImage) -> None:
    model = detector.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        found = explain_detection(detector, image)
    assert any(edge.value for edge in found.edges)
    assert not model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_what_cannot_be_explained_is_said(detector: Detector, image: RgbImage) -> None:
    with pytest.raises(NothingFoundError, match=r"scores 1 or more; the best score is 0\.\d+: lower"):
        explain_detection(detector, image, score_threshold=1.0)
    count = len(detector.predict(image))
    with pytest.raises(SettingError, match=f"detection {count}: the image has {count}, numbered 0 to {count - 1}"):
        explain_detection(detector, image, count)


def test_the_input_is_the_one_that_predictions_have(detector: Detector, image: RgbImage) -> None:
    rectangular = Detector(detector.model, detector.info, device="cpu", rectangular=True, image_size=256)
    predictions = rectangular.predict(image)
    found = explain_detection(rectangular, image)
    assert found.box_xyxy == pytest.approx(predictions.boxes_xyxy[0].tolist(), abs=1e-2)
    assert found.score == pytest.approx(float(predictions.scores[0]), abs=1e-5)


def test_without_overlap_nothing_is_suppressed(detector: Detector, image: RgbImage) -> None:
    assert explain_detection(detector, image, iou_threshold=1.0).suppressed == 0


def test_json_has_everything(detector: Detector, image: RgbImage) -> None:
    report = json.loads(json.dumps(dataclasses.asdict(explain_detection(detector, image, 1))))
    assert (report["index"], report["feature_network"]) == (1, "bifpn")
    assert set(report["classes"][0]) == {"class_name", "probability"}
    assert [entry["level"] for entry in report["levels"]] == [3, 4, 5, 6, 7]
    assert len(report["edges"]) == 2 * 19
