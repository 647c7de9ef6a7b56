from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.settings import names_of, to_dict
from efficientdet.training.config import LossSettings, TrainConfig, TrainOptions


def test_the_defaults_are_allowed() -> None:
    config = TrainConfig()
    assert config.scale_range() == (0.5, 1.5)
    assert config.flip == 0.5


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"batch_size": 64, "optimizer": "sgd"}, 0.08),
        ({"batch_size": 8, "optimizer": "sgd"}, 0.01),
        ({"batch_size": 8, "accumulate": 4, "devices": 2, "optimizer": "sgd"}, 0.08),
        ({"batch_size": 8}, 4e-3),
        ({"batch_size": 2}, 2e-3),
        ({"batch_size": 4, "accumulate": 4, "devices": 2}, 8e-3),
        ({"batch_size": 64, "learning_rate": 0.3}, 0.3),
    ],
)
def test_the_learning_rate_comes_from_the_images_of_a_step(settings: dict[str, Any], rate: float) -> None:
    assert TrainConfig(**settings).peak_learning_rate() == pytest.approx(rate)


def test_weight_decay_by_optimizer() -> None:
    assert TrainConfig().decay() == 1e-2
    assert TrainConfig(optimizer="sgd").decay() == 4e-5
    assert TrainConfig(weight_decay=0.0).decay() == 0


@pytest.mark.parametrize(
    ("settings", "freezes"),
    [
        ({"weights": "people", "batch_size": 3}, True),
        ({"backbone_weights": "people", "batch_size": 3}, True),
        ({"batch_size": 3}, False),
        ({"weights": "people", "batch_size": 4}, False),
        ({"weights": "people", "batch_size": 3, "batch_norm": "train"}, False),
        ({"batch_norm": "frozen", "batch_size": 64}, True),
    ],
)
def test_when_batch_norms_freeze(settings: dict[str, Any], freezes: bool) -> None:
    assert TrainConfig(**settings).freezes_batch_norm() is freezes


def test_long_runs_jitter_more() -> None:
    assert TrainConfig(epochs=150).scale_range() == (0.1, 2.0)
    assert TrainConfig(epochs=149).scale_range() == (0.5, 1.5)
    assert TrainConfig(epochs=300, scale_jitter=(1.0, 1.0)).scale_range() == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("epochs", "5"), ("epochs", True), ("epochs", None), ("batch_size", 0),
        ("accumulate", 0), ("image_size", 31), ("learning_rate", 0.0), ("learning_rate", float("nan")),
        ("learning_rate", float("inf")), ("learning_rate", "fast"), ("weight_decay", -1e-9), ("warmup_epochs", -1),
        ("warmup_epochs", float("inf")), ("gradient_clip", -0.1), ("ema_decay", 1.0), ("ema_decay", -0.1),
        ("ema_decay", float("nan")), ("drop_path", 1.0), ("backbone_rate", -1.0), ("frozen_stages", 8),
        ("frozen_stages", -1), ("seed", -1), ("seed", 2**32), ("workers", -1), ("evaluate_every", 0),
        ("save_every", 0), ("devices", 0), ("flip", 1.5), ("flip", -0.1), ("flip", float("nan")),
        ("scale_jitter", (2.0, 1.0)), ("scale_jitter", 0.5),
        ("layer_decay", 0.0), ("layer_decay", 1.1),
        ("anchor_scale", 0.0), ("image_size", 100_000), ("workers", 10_000),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError) as caught:
        TrainConfig(**{name: value})
    assert name in str(caught.value)
    assert (repr(value) if isinstance(value, str) else str(value)) in str(caught.value)


def test_an_aspect_out_of_range_is_named() -> None:
    with pytest.raises(SettingError, match=r"aspects is 0\.0"):
        TrainConfig(aspects=(1.0, 0.0))


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


@pytest.mark.parametrize(
    ("box_loss", "setting"), [("giou", {"box_weight": 10.0}), ("giou", {"delta": 1.0}), ("huber", {"giou_weight": 1.0})]
)
def test_settings_of_the_other_box_loss_are_refused(box_loss: Any, setting: dict[str, Any]) -> None:
    name, other = next(iter(setting)), "huber" if box_loss == "giou" else "giou"
    with pytest.raises(SettingError, match=f"loss.{name} has no effect with box_loss {box_loss}; set .* to {other}"):
        TrainConfig(box_loss=box_loss, loss=LossSettings(**setting))
    assert TrainConfig(box_loss=other, loss=LossSettings(**setting)).box_loss == other  # type: ignore[arg-type]


def test_task_alignment_has_one_box_loss() -> None:
    with pytest.raises(SettingError, match="box_loss huber does not suit assignment task-aligned, .* set box_loss to"):
        TrainConfig(assignment="task-aligned", box_loss="huber")
    with pytest.raises(SettingError, match="loss.delta has no effect with box_loss giou"):
        TrainConfig(loss=LossSettings(delta=1.0))
    assert TrainConfig(assignment="task-aligned", loss=LossSettings(giou_weight=1.0)).assigns_by() == "task-aligned"
    assert TrainConfig().assigns_by() == TrainConfig(assignment="iou").assigns_by() == "iou"


def test_a_dict_of_it_is_plain() -> None:
    config = TrainConfig(scale_jitter=(0.5, 1.5), image_size=320, weights=Path("runs/1/best.safetensors"))
    content = json.loads(json.dumps(to_dict(config)))
    assert content["loss"]["gamma"] == 1.5
    assert content["weights"] == str(Path("runs/1/best.safetensors"))
    assert TrainConfig(**content) == config


@pytest.mark.parametrize("jitter", [(0.0, 1.0), (-1.0, 1.0), (1.0, 1e308), (float("nan"), 1.0), (0.5, float("inf"))])
def test_a_scale_that_is_none_is_named(jitter: tuple[float, float]) -> None:
    with pytest.raises(SettingError, match="scale_jitter is"):
        TrainConfig(scale_jitter=jitter)


def test_anchors_are_given_as_ratios() -> None:
    assert TrainConfig().anchors() == {}
    assert TrainConfig(anchor_scale=2.0).anchors() == {"anchor_scale": 2.0}
    assert TrainConfig(aspects=[1.0, 4.0]).anchors() == {"aspects": ((1.0, 1.0), (2.0, 0.5))}


@pytest.mark.parametrize("values", [{"alpha": 1.5}, {"gamma": -1}, {"delta": 0.0}, {"label_smoothing": 1.0}])
def test_a_loss_setting_out_of_range_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(values))} is"):
        LossSettings(**values)


def test_the_keywords_of_type_checkers_are_the_fields() -> None:
    assert get_type_hints(TrainOptions) == get_type_hints(TrainConfig)
    assert set(names_of(TrainConfig)) == set(get_type_hints(TrainOptions))


@pytest.mark.parametrize("module", ["config", "plan"])
def test_settings_and_planning_import_nothing_heavy(module: str) -> None:
    program = (
        f"import sys, efficientdet.training.{module}\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'PIL', 'rich', 'lightning'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
