"""Engines of end-to-end files: what can be asked of them, and what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efficientdet.errors import SettingError
from efficientdet.inference.engines.session import EndToEndEngine
from efficientdet.inference.settings import PostprocessSettings


def engine(threshold: float | tuple[float, ...]) -> EndToEndEngine:
    """A file that finds four objects of two classes."""
    scores, labels = np.array([[0.9, 0.6, 0.5, 0.3, 0.0]], np.float32), np.array([[0, 1, 0, 1, 0]])
    outputs = [np.zeros((1, 5, 4), np.float32), scores, labels, np.array([4])]
    return EndToEndEngine("onnxruntime", "fp32", PostprocessSettings(threshold), lambda _: lambda *inputs: outputs)


def scores_of(settings: PostprocessSettings) -> Any:
    _, scores, _ = engine(0.05).detect(np.zeros((8, 8, 3), np.uint8), (8, 8), settings)
    return scores.tolist()


def test_thresholds_for_all_and_for_each_class() -> None:
    assert scores_of(PostprocessSettings(0.4)) == pytest.approx([0.9, 0.6, 0.5])
    assert scores_of(PostprocessSettings((0.7, 0.2))) == pytest.approx([0.9, 0.6, 0.3])
    assert scores_of(PostprocessSettings((0.1, 0.7), max_detections=1)) == pytest.approx([0.9])
    assert scores_of(PostprocessSettings(0.0)) == pytest.approx([0.9, 0.6, 0.5, 0.3])


@pytest.mark.parametrize("own", [0.2, (0.2, 0.1)])
def test_thresholds_can_be_raised_alone(own: float | tuple[float, ...]) -> None:
    for allowed in (0.2, 0.5, (0.2, 0.3)):
        engine(own).check(PostprocessSettings(allowed))
    for refused in (0.05, (0.1, 0.3)):
        with pytest.raises(SettingError, match="score_threshold is .* inside the end-to-end file"):
            engine(own).check(PostprocessSettings(refused))
