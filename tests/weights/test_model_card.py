"""The tables of weights at hand, from their own metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efficientdet.family import MODELS
from efficientdet.weights import model_card, names
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.info import CheckpointInfo, default_preprocessing
from efficientdet.weights.model_card import bundled_rows


def test_bundled_models_speak_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (model_card, names):
        monkeypatch.setattr(module, "BUNDLED_FOLDER", tmp_path)
    assert bundled_rows() == []
    spec = MODELS["lite0"]
    for name, metrics in (("people", {"ap": 0.31239, "ap50": 0.5}), ("cells", {})):
        info = CheckpointInfo(spec, ("a", "b"), (1, 2), default_preprocessing(spec), metrics=metrics)
        save_checkpoint(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)}, info)
    assert bundled_rows() == [
        {"name": "cells", "network": "lite0", "classes": "a, b", "input": 320, "AP": None, "AP50": None},
        {"name": "people", "network": "lite0", "classes": "a, b", "input": 320, "AP": 0.312, "AP50": 0.5},
    ]
