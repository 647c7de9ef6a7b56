"""Fusions: learned weights are shown where there are some, speeds are taken in turns, and fast agrees with softmax."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from efficientdet.errors import UnknownNameError
from efficientdet.family import MODELS
from efficientdet.network.efficientdet import create_model
from efficientdet.network.fusion import FUSIONS, Fusion
from efficientdet.research.report import fusions
from efficientdet.research.report.fusions import (
    agreement,
    build_networks,
    fusion_times,
    fusions_section,
    learned_rows,
    node_shares,
    random_features,
)
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing, save_checkpoint

TINY = dataclasses.replace(MODELS["lite0"], image_size=128, width=16, depth=2)


def save(path: Path, fusion: str, feature_network: str = "bifpn") -> str:
    model = create_model(TINY, 1, fusion=fusion, feature_network=feature_network)
    if fusion != "none":
        node = model.feature_network.cells[1]["out5"]
        assert isinstance(node.fuse, Fusion) and node.fuse.weights is not None
        with torch.no_grad():
            node.fuse.weights.copy_(torch.tensor([3.0, 1.0, 0.0]))
    info = CheckpointInfo(model.spec, ("a",), (1,), default_preprocessing(model.spec))
    save_checkpoint(path, model.state_dict(), info)
    return str(path)


def test_learned_weights_are_tabled_and_drawn(tmp_path: Path) -> None:
    weights = save(tmp_path / "mine.safetensors", "fast")
    text = fusions_section(tmp_path, weights, None, "", TINY)
    assert "### Learned weights of mine" in text
    assert "| 1 | out5 | in5 0.750, td5 0.250, out4 0.000 |" in text
    assert "| 0 | td6 | in6 0.500, in7 0.500 |" in text
    assert (tmp_path / "learned_weights.png").is_file()
    assert "Speed" not in text and not (tmp_path / "fusion_speed.png").exists()


def test_a_checkpoint_without_weights_says_so(tmp_path: Path) -> None:
    text = fusions_section(tmp_path, save(tmp_path / "plain.safetensors", "none"), None, "", TINY)
    assert "None: lite0 sums with fusion none, which learns none." in text
    assert not (tmp_path / "learned_weights.png").exists()


def test_without_a_checkpoint_the_bundled_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "birds.safetensors", "none")
    monkeypatch.setattr(fusions, "BUNDLED_FOLDER", tmp_path)
    monkeypatch.setattr(fusions, "bundled_names", lambda: ["birds"])
    assert "birds (lite0, fusion none)" in fusions_section(tmp_path, None, None, "", TINY)


def test_weights_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nowhere"):
        fusions_section(tmp_path, "nowhere", None, "", TINY)


def test_nodes_that_pool_instead_of_weighing_are_left_out() -> None:
    network = create_model(TINY, 1, feature_network="nas-fpn", fusion="fast").feature_network
    assert all("a" not in cell and "out3" in cell for cell in node_shares(network))
    assert {row["cell"] for row in learned_rows(network)} == {0, 1}


def test_each_fusion_is_timed_in_every_round(tmp_path: Path) -> None:
    found = fusion_times(TINY, "cpu", rounds=3)
    assert set(found) == set(FUSIONS)
    assert all(len(values) == 3 and min(values) > 0 for values in found.values())
    text = fusions_section(tmp_path, None, "cpu", "A chip", TINY, rounds=3)
    assert "A chip. The feature network of lite0 alone" in text and "1.26-1.31 times" in text
    assert (tmp_path / "fusion_speed.svg").is_file()


def test_networks_differ_in_the_fusion_alone() -> None:
    state = torch.get_rng_state()
    built = build_networks(TINY)
    assert torch.equal(torch.get_rng_state(), state)
    first = built["none"].state_dict()
    for network in built.values():
        other = {name: value for name, value in network.state_dict().items() if not name.endswith("fuse.weights")}
        assert other.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in other.items())
    shapes = [tuple(x.shape[2:]) for x in random_features(TINY)]
    assert shapes == [(16, 16), (8, 8), (4, 4)]


def test_fast_agrees_with_softmax_for_the_same_normalized_weights() -> None:
    equal, same, different = agreement(TINY)
    for row in (equal, same):
        assert float(row["normalized weights differ by"]) < 1e-4  # epsilon
        assert 0 < float(row["outputs differ by, relative"]) < 1e-3
    assert float(different["outputs differ by, relative"]) > 5e-3
