"""Fusions: speeds are taken in turns, and fast agrees with softmax."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from efficientdet.family import MODELS
from efficientdet.network.fusion import FUSIONS
from efficientdet.research.report import fusions
from efficientdet.research.report.fusions import agreement, fusion_times, fusions_parts, make_network

TINY = dataclasses.replace(MODELS["lite0"], image_size=128, width=16, depth=2)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusions, "SPEC", TINY)


def test_without_timing_nothing_is_measured() -> None:
    parts = fusions_parts(None)
    assert parts["speed"] == "Not measured.\n"
    assert parts["agreement"].startswith("| raw weights |")


def test_each_fusion_is_timed_in_every_round() -> None:
    found = fusion_times(TINY, "cpu", rounds=3)
    assert {kind: len(values) for kind, values in found.items()} == dict.fromkeys(FUSIONS, 3)


def test_speeds_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fast": [1.0, 2.0, 4.0], "softmax": [1.5, 3.0, 8.0], "unbounded": [1.0] * 3, "none": [0.5] * 3}
    monkeypatch.setattr(fusions, "fusion_times", lambda spec, device: times)
    text = fusions_parts("cpu")["speed"]
    assert "| softmax | 3.0 (1.5-8.0) | 1.50 (1.50-2.00) |" in text and "takes 1.50 times as long" in text
    assert "1.26-1.31 times" in text


def test_networks_differ_in_the_fusion_alone() -> None:
    state = torch.get_rng_state()
    built = {kind: make_network(TINY, kind) for kind in FUSIONS}
    assert torch.equal(torch.get_rng_state(), state)
    first, features = built["none"][0].state_dict(), built["none"][1]
    for network, others in built.values():
        other = {name: value for name, value in network.state_dict().items() if not name.endswith("fuse.weights")}
        assert other.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in other.items())
        assert all(torch.equal(a, b) for a, b in zip(features, others, strict=True))
    assert [tuple(x.shape[2:]) for x in features] == [(16, 16), (8, 8), (4, 4)]


def test_fast_agrees_with_softmax_for_the_same_normalized_weights() -> None:
    equal, same, different = agreement(TINY)
    for row in (equal, same):
        assert 0 < float(row["normalized weights differ by"]) < 1e-4  # epsilon
        assert 0 < float(row["outputs differ by"]) < 1e-3
    assert float(different["outputs differ by"]) > 5e-3
