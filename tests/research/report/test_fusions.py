"""Fusions: learned weights are shown where there are some, speeds are taken in turns, and fast agrees with softmax."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from efficientdet.errors import UnknownNameError
from efficientdet.family import MODELS
from efficientdet.network.efficientdet import build_model
from efficientdet.network.fusion import FUSIONS, Fusion
from efficientdet.research.report import fusions
from efficientdet.research.report.fusions import (
    agreement,
    build_models,
    fusion_times,
    fusions_section,
    noise_features,
)
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing, save_checkpoint

TINY = dataclasses.replace(MODELS["lite0"], image_size=128, width=16, depth=2)


def save(path: Path, fusion: str, feature_network: str = "bifpn") -> str:
    model = build_model(TINY, 1, fusion=fusion, feature_network=feature_network)
    if fusion != "none":
        node = model.feature_network.cells[1]["out5"]
        assert isinstance(node.fuse, Fusion) and node.fuse.weights is not None
        with torch.no_grad():
            node.fuse.weights.copy_(torch.tensor([3.0, 1.0, 0.0]))
    info = CheckpointInfo(model.spec, ("a",), (1,), default_preprocessing(model.spec))
    save_checkpoint(path, model.state_dict(), info)
    return str(path)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusions, "SPEC", TINY)


def test_learned_weights_are_drawn(tmp_path: Path) -> None:
    text = fusions_section(tmp_path, save(tmp_path / "mine.safetensors", "fast"), None)
    assert "### Learned weights of mine\n\nlite0, bifpn, fusion fast." in text
    with Image.open(tmp_path / "learned_weights.png") as figure:
        assert figure.width > 500
    assert "Speed" not in text


def test_a_checkpoint_without_weights_says_so(tmp_path: Path) -> None:
    text = fusions_section(tmp_path, save(tmp_path / "plain.safetensors", "none"), None)
    assert "fusion none: a plain sum, which learns no weights." in text
    assert not (tmp_path / "learned_weights.png").exists()


def test_without_a_checkpoint_the_bundled_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "birds.safetensors", "none")
    monkeypatch.setattr(fusions, "BUNDLED_FOLDER", tmp_path)
    monkeypatch.setattr(fusions, "bundled_names", lambda: ["birds"])
    assert "birds (lite0, fusion none)" in fusions_section(tmp_path, None, None)


def test_weights_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nowhere"):
        fusions_section(tmp_path, "nowhere", None)


def test_each_fusion_is_timed_in_every_round() -> None:
    found = fusion_times(TINY, "cpu", rounds=3)
    assert {kind: len(values) for kind, values in found.items()} == dict.fromkeys(FUSIONS, 3)


def test_speeds_are_compared_round_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fast": [1.0, 2.0, 4.0], "softmax": [1.5, 3.0, 8.0], "unbounded": [1.0] * 3, "none": [0.5] * 3}
    monkeypatch.setattr(fusions, "fusion_times", lambda spec, device: times)
    text = fusions_section(tmp_path, None, "cpu")
    assert "| softmax | 3 (1.5-8) | 1.5 (1.5-2) |" in text and "takes 1.50 times as long" in text
    assert "1.26-1.31 times" in text


def test_networks_differ_in_the_fusion_alone() -> None:
    state = torch.get_rng_state()
    built = build_models(TINY)
    assert torch.equal(torch.get_rng_state(), state)
    first = built["none"].state_dict()
    for model in built.values():
        other = {name: value for name, value in model.state_dict().items() if not name.endswith("fuse.weights")}
        assert other.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in other.items())
    shapes = [tuple(x.shape[2:]) for x in noise_features(built["fast"])]
    assert shapes == [(16, 16), (8, 8), (4, 4)]


def test_fast_agrees_with_softmax_for_the_same_normalized_weights() -> None:
    equal, same, different = agreement(TINY)
    for row in (equal, same):
        assert 0 < float(row["normalized weights differ by"]) < 1e-4  # epsilon
        assert 0 < float(row["outputs differ by"]) < 1e-3
    assert float(different["outputs differ by"]) > 5e-3
