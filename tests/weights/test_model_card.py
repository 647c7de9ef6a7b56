"""The tables of weights at hand, from their own metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

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


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("Apache-2.0", ("apache-2.0", None)),
        ("ours: ask\n---\nlicense: mit", ("other", "ours: ask\\x0a---\\x0alicense: mit")),
        ("", (None, None)),
    ],
)
def test_the_facts_for_the_hub_are_yaml_whatever_a_checkpoint_says(
    license: str, expected: tuple[str | None, str | None]
) -> None:
    spec = MODELS["lite0"]
    info = CheckpointInfo(spec, ("a: b\n---",), (1,), default_preprocessing(spec), about={"license": license})
    card = ModelCard(model_card.model_card("hf://me/mine", info)).data
    assert (card.license, getattr(card, "license_name", None)) == expected
    assert card.pipeline_tag == "object-detection" and card.eval_results is None and card.datasets is None
