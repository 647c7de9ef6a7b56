from __future__ import annotations

import pytest
import torch

from efficientdet.family import MODELS
from efficientdet.inference.roofline import COPIED_BYTES, MATRIX_SIDE, MachineSpeed, network_floor, stopwatch

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
