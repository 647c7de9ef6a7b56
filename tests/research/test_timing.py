"""Turns: who runs when, and which runs count. No test here depends on how long anything takes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from efficientdet.family import ModelSpec
from efficientdet.research import timing
from efficientdet.research.timing import forward_pass, latency_ms, time_in_turns


def test_each_runs_once_a_round_and_the_order_turns() -> None:
    order: list[str] = []
    found = time_in_turns({name: partial(order.append, name) for name in "abc"}, "cpu", 2)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2, "c": 2}


def test_work_runs_without_gradients() -> None:
    seen: list[bool] = []
    time_in_turns({"work": lambda: seen.append(torch.is_inference_mode_enabled())}, "cpu", 1)
    assert seen == [True] * 3


def test_the_network_of_the_spec_runs_at_its_image_size(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[tuple[int, ...]] = []
    forward = timing.EfficientDet.forward
    monkeypatch.setattr(
        timing.EfficientDet, "forward", lambda self, x: inputs.append(tuple(x.shape)) or forward(self, x)
    )
    spec = ModelSpec("tiny", "lite0", 64, 16, 1, 1, activation="relu6")
    class_logits, _ = forward_pass(spec, num_classes=3)()  # type: ignore[misc, attr-defined]
    assert inputs == [(1, 3, 64, 64)] and class_logits[0].shape[2] == 3


def test_latency_is_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time_in_turns", lambda works, device, rounds: {"tiny": [3.0, 1.0, 20.0]})
    assert latency_ms(ModelSpec("tiny", "lite0", 64, 16, 1, 1)) == 3.0
