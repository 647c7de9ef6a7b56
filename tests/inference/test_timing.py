"""Turns and floors: who runs when, which runs count, and the shortest time possible. No test depends on a duration."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from efficientdet.family import MODELS, ModelSpec
from efficientdet.inference import timing
from efficientdet.inference.timing import (
    COPIED_BYTES,
    MATRIX_SIDE,
    MachineSpeed,
    forward_pass,
    latency_ms,
    network_floor,
    stopwatch,
    time_in_turns,
)

D0 = MODELS["d0"]
# Nothing but arithmetic, or nothing but memory.
ARITHMETIC = {"fp32": 10.0, "bf16": 4.0, "copy": 0.0}
MEMORY = {"fp32": 0.0, "bf16": 0.0, "copy": 100.0}


def test_floors_grow_with_the_work() -> None:
    one = network_floor(D0, 90, [(512, 512)], "fp32", ARITHMETIC)
    assert one == pytest.approx(24.9, abs=0.1)  # 2.49 GMAC
    assert network_floor(D0, 90, [(512, 512)] * 2, "fp32", ARITHMETIC) == pytest.approx(2 * one)
    assert network_floor(D0, 90, [(384, 512)], "fp32", ARITHMETIC) == pytest.approx(0.75 * one, rel=0.01)
    assert network_floor(D0, 90, [(1024, 1024)], "fp32", ARITHMETIC) == pytest.approx(4 * one, rel=0.01)
    # 3.9 million parameters, 3 x 512 x 512 of input, 49,104 anchors with 90 classes and 4 deltas.
    numbers = 786432 + 49104 * 94
    memory = network_floor(D0, 90, [(512, 512)], "fp32", MEMORY)
    assert memory == pytest.approx(100 * 4 * (3.88e6 + numbers) / 1e9, rel=0.01)
    assert network_floor(D0, 90, [(512, 512)], "bf16", MEMORY) == pytest.approx(memory / 2)
    both = network_floor(D0, 90, [(512, 512)] * 2, "fp32", MEMORY)
    assert both == pytest.approx(100 * 4 * (3.88e6 + 2 * numbers) / 1e9, rel=0.01)


def test_the_longer_of_arithmetic_and_memory_counts() -> None:
    speed = {"fp32": 10.0, "bf16": 4.0, "copy": 100.0}
    assert network_floor(D0, 90, [(512, 512)], "fp32", speed) == pytest.approx(24.9, abs=0.1)
    assert network_floor(D0, 90, [(512, 512)], "bf16", speed) == pytest.approx(0.4 * 24.9, abs=0.1)


def test_a_narrow_type_without_instructions_of_its_own_is_no_faster() -> None:
    slow = {"fp32": 10.0, "bf16": 40.0, "copy": 0.0}
    assert network_floor(D0, 90, [(512, 512)], "bf16", slow) == pytest.approx(24.9, abs=0.1)


def test_the_best_of_the_measured_is_taken_for_a_gmac_and_a_gb() -> None:
    machine = MachineSpeed(torch.device("cpu"), ["bf16"])
    machine.spent += [("fp32", 30.0), ("fp32", 20.0), ("bf16", 10.0), ("copy", 60.0), ("copy", 90.0)]
    best, gmac = machine.best(), MATRIX_SIDE["cpu"] ** 3 / 1e9
    assert best == {"fp32": 20.0 / gmac, "bf16": 10.0 / gmac, "copy": pytest.approx(60.0 / (2 * COPIED_BYTES / 1e9))}
    machine.measure()
    assert [name for name, _ in machine.spent[-3:]] == ["fp32", "bf16", "copy"]
    assert all(milliseconds > 0 for _, milliseconds in machine.spent)


def test_the_stopwatch_notes_the_parts_in_the_order_in_which_they_end() -> None:
    spent: list[tuple[str, float]] = []
    timed = stopwatch(spent, torch.device("cpu"))
    with timed("whole"), timed("part"):
        pass
    assert [name for name, _ in spent] == ["part", "whole"]
    assert 0 <= spent[0][1] <= spent[1][1]


# ---- turns
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
