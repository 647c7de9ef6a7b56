from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.errors import SettingError
from efficientdet.training.config import TrainConfig, typed_settings
from efficientdet.training.plan import DatasetFacts, Plan, Speed, length_at, plan, sizes_for

# A lite0 on two cores: seconds an image at 256 and 512 pixels.
CPU = Speed({256: 0.075, 512: 0.30}, {256: 0.03, 512: 0.11})
GPU = Speed({256: 0.002, 512: 0.006}, {256: 0.001, 512: 0.003})
BOARDS = DatasetFacts(100, 29, 640, tuple(i / 100 for i in range(4, 40, 2)))


def _chosen(facts: DatasetFacts = BOARDS, speed: Speed = CPU, minutes: float = 12, **settings: Any) -> TrainConfig:
    config = TrainConfig(minutes=minutes, **settings)
    return dataclasses.replace(config, **_plan(config, facts, speed, settings).settings)


def _plan(config: TrainConfig, facts: DatasetFacts, speed: Speed, settings: dict[str, Any]) -> Plan:
    assert config.minutes is not None
    return plan(facts, speed, 55 * config.minutes, config, typed_settings(None, settings))


def _seconds(config: TrainConfig, facts: DatasetFacts, speed: Speed) -> float:
    assert config.image_size is not None
    evaluated = min(facts.val_images, config.evaluate_images or facts.val_images)
    evaluations = -(-config.epochs // config.evaluate_every)
    training = config.epochs * facts.images * speed.training_seconds(config.image_size)
    return training + evaluations * evaluated * speed.evaluation_seconds(config.image_size)


def test_a_hundred_photographs_in_twelve_minutes() -> None:
    config = _chosen(weights="people")
    assert config.image_size is not None
    assert 320 <= config.image_size <= 512
    assert 15 <= config.epochs <= 60
    assert config.frozen_stages == 2
    assert config.batch_size == 8
    assert config.evaluate_images is None
    assert _seconds(config, BOARDS, CPU) <= 55 * 12


def test_small_boxes_want_larger_images() -> None:
    small = BOARDS._replace(box_sides=tuple(side / 4 for side in BOARDS.box_sides), longest_side=1920)
    large = BOARDS._replace(box_sides=(0.4, 0.5, 0.8), longest_side=1920)
    sizes = [_chosen(facts, minutes=20).image_size for facts in (large, BOARDS, small)]
    assert None not in sizes
    assert sizes == sorted(sizes, key=lambda size: size or 0)
    assert sizes[0] != sizes[2]


def test_a_longer_budget_never_chooses_smaller_images() -> None:
    sizes = [_chosen(minutes=minutes).image_size or 0 for minutes in (1, 3, 10, 30, 100, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_images_are_not_enlarged_far_beyond_their_pixels() -> None:
    tiny = BOARDS._replace(longest_side=300, box_sides=(0.05,))
    assert list(sizes_for(tiny, GPU)) == [224, 256, 320]
    assert _chosen(tiny, GPU).image_size in (224, 256, 320)


def test_sizes_that_do_not_fit_the_memory_are_left_out() -> None:
    limited = dataclasses.replace(GPU, too_large=512)
    assert max(sizes_for(BOARDS, limited)) == 448
    assert (_chosen(speed=limited).image_size or 0) < 512


def test_what_was_typed_stays() -> None:
    settings: dict[str, Any] = {
        "image_size": 256, "epochs": 7, "batch_size": 3, "frozen_stages": 1, "scale_jitter": (0.9, 1.1),
        "evaluate_every": 4, "evaluate_images": 5, "warmup_epochs": 2.5,
    }  # fmt: skip
    assert _chosen(**settings) == TrainConfig(minutes=12, **settings)
    assert _chosen(frozen_stages=0, weights="people", minutes=0.5).frozen_stages == 0  # the default, typed
    assert _chosen(weights="people").assigns_by() == "task-aligned"
    for own in ({"assignment": "iou", "weights": "people"}, {"box_loss": "huber", "weights": "people"}, {}):
        assert _chosen(**own).assigns_by() == "iou"
    assert _chosen(backbone="timm:resnet18", weights="own.safetensors").frozen_stages == 0  # its stages are not known
    fewer = _chosen(epochs=5)
    assert fewer.epochs == 5
    assert (fewer.image_size or 0) >= (_chosen().image_size or 0)  # five passes leave time for larger images


def test_what_a_config_changes_counts_as_typed() -> None:
    assert typed_settings(TrainConfig(epochs=3), {"seed": 0, "image_size": None}) == {"epochs", "seed"}
    assert typed_settings(None, {}) == frozenset()


def test_a_short_run_freezes_and_jitters_less_and_warms_up_shortly() -> None:
    config = _chosen(weights="people", minutes=0.4)
    assert config.frozen_stages == 2
    assert config.scale_range() != TrainConfig().scale_range()
    assert config.warmup_epochs < config.epochs / 5
    assert _chosen(minutes=0.4).frozen_stages == 0  # nothing to keep where nothing was learned


def test_a_run_of_few_steps_takes_more_and_larger_ones() -> None:
    config = _chosen(minutes=2, weights="people")
    assert config.batch_size == 4
    assert config.learning_rate is not None
    assert config.learning_rate > 2 * TrainConfig(batch_size=4).peak_learning_rate()
    assert config.learning_rate == float(f"{config.learning_rate:.4g}")  # the command in the last line has all of it
    rates = [_chosen(minutes=minutes, image_size=256, batch_size=8).learning_rate or 0.004 for minutes in (1, 4, 8, 60)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (0.016, 0.004)
    assert 0.004 < rates[1] < 0.016
    assert _chosen(minutes=2, learning_rate=0.001).learning_rate == 0.001
    assert _chosen(minutes=2, optimizer="sgd").learning_rate is None


def test_many_passes_over_few_images_have_the_jitter_of_a_short_run() -> None:
    few = BOARDS._replace(images=20)
    config = _chosen(few, minutes=30)
    assert config.epochs >= 150
    assert config.scale_range() == TrainConfig(epochs=20).scale_range()
    many = _chosen(BOARDS._replace(images=10_000), GPU, minutes=3000, backbone_weights="people")
    assert many.frozen_stages == 0  # long enough for the whole backbone to learn
    assert many.epochs >= 150
    assert many.scale_range() == TrainConfig(epochs=300).scale_range()


def test_a_large_dataset_has_less_than_one_pass_and_evaluates_some_images() -> None:
    coco = DatasetFacts(118_000, 5000, 640, BOARDS.box_sides)
    config = _chosen(coco)
    assert config.epochs == 1
    assert config.evaluate_images is not None
    assert 16 <= config.evaluate_images < 5000
    assert config.warmup_epochs <= 0.1
    assert config.evaluate_images * CPU.evaluation_seconds(config.image_size or 0) < 12 * 60 / 3


def test_too_few_minutes_say_how_many_are_enough() -> None:
    slow = Speed({256: 30.0}, {256: 10.0})
    with pytest.raises(SettingError, match=r"minutes is 0\.5: too few for one step of 8 images at 224 px"):
        _chosen(speed=slow, minutes=0.5)


def test_the_choice_is_explained_in_five_lines_with_a_command() -> None:
    settings: dict[str, Any] = {"image_size": 320}
    lines = _plan(TrainConfig(minutes=12, **settings), BOARDS, CPU, settings).lines
    assert len(lines) == 5
    assert lines[0].startswith("budget: 12 minutes for 100 images; a step of 8 takes 0.6 s at 256 px, 2.4 s at 512 px")
    assert lines[1].startswith("image size 320 (as given): half of the boxes are under ")
    assert lines[4].startswith("the same without a budget: --epochs ")
    assert "--image-size" not in lines[4]
    assert "passes fit" in _plan(TrainConfig(minutes=12), BOARDS, CPU, {}).lines[1]


def test_speed_between_and_beyond_the_measured_sizes() -> None:
    assert CPU.training_seconds(256) == pytest.approx(0.075)
    assert CPU.training_seconds(1024) == pytest.approx(0.075 + 0.225 / (512**2 - 256**2) * (1024**2 - 256**2))
    assert Speed({320: 0.1}, {}).training_seconds(640) == pytest.approx(0.4)
    assert Speed({320: 0.1}, {}).evaluation_seconds(640) == 0
    noisy = Speed({256: 0.2, 512: 0.1}, {})
    assert noisy.training_seconds(1024) == pytest.approx(0.4)


@settings(deadline=None, max_examples=50)
@given(
    images=st.integers(1, 10**6), val_images=st.integers(0, 10**5), longest=st.floats(32, 8000),
    sides=st.lists(st.floats(0.001, 1), max_size=20), minutes=st.floats(0.05, 3000),
    speed=st.floats(1e-4, 30), evaluation=st.floats(1e-4, 10),
)  # fmt: skip
def test_every_plan_fits_its_budget(
    images: int, val_images: int, longest: float, sides: list[float], minutes: float, speed: float, evaluation: float
) -> None:
    facts = DatasetFacts(images, val_images, longest, tuple(sides))
    measured = Speed({320: speed}, {320: evaluation} if val_images else {})
    try:
        config = _chosen(facts, measured, minutes)
    except SettingError as error:
        assert "too few" in str(error)  # noqa: PT017
        return
    assert config.epochs >= 1
    length = length_at(config.image_size or 0, facts, measured, 55 * minutes, TrainConfig(minutes=minutes), ())
    if length.passes >= 1:
        assert _seconds(config, facts, measured) <= 55 * minutes * 1.001
