from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW

from efficientdet.training.config import TrainConfig
from efficientdet.training.schedule import (
    batch_norm_momentum,
    build_optimizer,
    move_average,
    parameter_groups,
    rate_factor,
)
from efficientdet.weights.create import create_model


def test_the_rate_warms_up_then_falls_as_a_cosine() -> None:
    factors = [rate_factor(step, 10, 110) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[5] == pytest.approx(0.55)
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0, abs=1e-12)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[35] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 500), st.integers(1, 5_000))
def test_the_rate_is_never_negative_nor_above_its_peak(step: int, warmup: int, total: int) -> None:
    assert 0 <= rate_factor(step, min(warmup, total // 2), total) <= 1


def test_a_run_of_one_step_learns() -> None:
    assert rate_factor(0, 0, 1) == 1


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.1), (300, 0.1), (1000, 0.03), (3000, 0.01), (10**6, 0.01)])
def test_statistics_follow_faster_in_short_runs(steps: int, momentum: float) -> None:
    assert batch_norm_momentum(steps) == pytest.approx(momentum)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return create_model("lite0", 2)


def test_only_kernels_decay_and_the_backbone_has_its_own_rate(model: nn.Module) -> None:
    config = TrainConfig(learning_rate=1.0, backbone_rate=0.25, weight_decay=0.5)
    groups = parameter_groups(model, config)
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = by_parameter.pop(id(parameter))
        assert group["lr"] == (0.25 if name.startswith("backbone.") else 1.0), name
        assert group["weight_decay"] == (0.5 if parameter.ndim == 4 else 0.0), name
    assert not by_parameter
    assert all(p.ndim == 4 for group in groups if group["weight_decay"] for p in group["params"])


def test_what_is_frozen_gets_no_optimizer() -> None:
    model = create_model("lite0", 2)
    model.backbone.requires_grad_(False)
    learning = {id(p) for group in parameter_groups(model, TrainConfig()) for p in group["params"]}
    assert learning == {id(p) for name, p in model.named_parameters() if not name.startswith("backbone.")}


def test_the_optimizer_is_the_one_asked_for(model: nn.Module) -> None:
    sgd = build_optimizer(model, TrainConfig(optimizer="sgd"))
    assert isinstance(sgd, SGD)
    assert all(group["momentum"] == 0.9 for group in sgd.param_groups)
    adamw = build_optimizer(model, TrainConfig(batch_size=32))
    assert isinstance(adamw, AdamW)
    assert {group["lr"] for group in adamw.param_groups} == {8e-3, 2e-3}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 1e-2}


def test_averaged_weights_follow_with_the_decay_ramped_up() -> None:
    averaged, current = [torch.zeros(3), torch.ones(2)], [torch.ones(3), torch.ones(2)]
    move_average(0.9998, averaged, current, torch.tensor(8))
    assert averaged[0].tolist() == pytest.approx([0.5] * 3)
    assert averaged[1].tolist() == [1.0, 1.0]
    move_average(0.25, averaged, current, 8)
    assert averaged[0].tolist() == pytest.approx([0.875] * 3)


def test_counters_are_copied() -> None:
    averaged = [torch.tensor(3)]
    move_average(0.9, averaged, [torch.tensor(7)], 100)
    assert averaged[0].item() == 7
