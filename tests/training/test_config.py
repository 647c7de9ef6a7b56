from __future__ import annotations

import json
from typing import Any

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.training.config import TrainConfig


def test_the_defaults_are_allowed() -> None:
    config = TrainConfig()
    assert config.augmentation().scale_jitter == (0.5, 1.5)
    assert config.augmentation().flip == 0.5


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"batch_size": 64}, 0.08),
        ({"batch_size": 8}, 0.01),
        ({"batch_size": 8, "accumulate": 4, "devices": 2}, 0.08),
        ({"batch_size": 16, "optimizer": "adamw"}, 1e-3),
        ({"batch_size": 4, "optimizer": "adamw"}, 5e-4),
        ({"batch_size": 4, "accumulate": 4, "optimizer": "adamw"}, 1e-3),
        ({"batch_size": 64, "learning_rate": 0.3}, 0.3),
    ],
)
def test_the_learning_rate_comes_from_the_pictures_of_a_step(settings: dict[str, Any], rate: float) -> None:
    assert TrainConfig(**settings).peak_learning_rate() == pytest.approx(rate)


def test_weight_decay_by_optimizer() -> None:
    assert TrainConfig().decay() == 4e-5
    assert TrainConfig(optimizer="adamw").decay() == 1e-2
    assert TrainConfig(weight_decay=0.0).decay() == 0


@pytest.mark.parametrize(
    ("settings", "is_pretrained", "freezes"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"batch_size": 32}, True, False),
        ({"batch_norm": "train"}, True, False),
        ({"batch_norm": "frozen", "batch_size": 64}, False, True),
    ],
)
def test_when_batch_norms_freeze(settings: dict[str, Any], is_pretrained: bool, freezes: bool) -> None:
    assert TrainConfig(**settings).freezes_batch_norm(is_pretrained) is freezes


def test_long_runs_jitter_more() -> None:
    assert TrainConfig(epochs=150).augmentation().scale_jitter == (0.1, 2.0)
    assert TrainConfig(epochs=149).augmentation().scale_jitter == (0.5, 1.5)
    assert TrainConfig(epochs=300, scale_jitter=(1.0, 1.0)).augmentation().scale_jitter == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("epochs", "5"), ("epochs", True), ("epochs", None), ("batch_size", 0),
        ("accumulate", 0), ("image_size", 31), ("learning_rate", 0.0), ("learning_rate", float("nan")),
        ("learning_rate", float("inf")), ("learning_rate", "fast"), ("weight_decay", -1e-9), ("warmup_epochs", -1),
        ("warmup_epochs", float("inf")), ("gradient_clip", -0.1), ("ema_decay", 1.0), ("ema_decay", -0.1),
        ("ema_decay", float("nan")), ("drop_path", 1.0), ("backbone_rate", -1.0), ("frozen_stages", 8),
        ("frozen_stages", -1), ("seed", -1), ("seed", 2**32), ("workers", -1), ("evaluate_every", 0),
        ("save_every", 0), ("devices", 0), ("flip", 1.5), ("scale_jitter", (0.0, 1.0)), ("scale_jitter", (2.0, 1.0)),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError) as caught:
        TrainConfig(**{name: value})
    assert name in str(caught.value)
    assert (repr(value) if isinstance(value, str) else str(value)) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [("optimizer", "sdg", "sgd"), ("precision", "fp64", "fp16"), ("batch_norm", "freeze", "frozen"),
     ("device", "cud", "cuda")],
)  # fmt: skip
def test_an_unknown_choice_lists_the_known(name: str, value: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown {name} '{value}'.*{near}"):
        TrainConfig(**{name: value})


def test_half_floats_need_a_gpu() -> None:
    with pytest.raises(SettingError, match="fp16 needs a GPU"):
        TrainConfig(precision="fp16", device="cpu")


def test_a_dict_of_it_is_plain() -> None:
    config = TrainConfig(scale_jitter=(0.5, 1.5), image_size=320)
    assert json.loads(json.dumps(config.to_dict()))["loss"]["gamma"] == 1.5
