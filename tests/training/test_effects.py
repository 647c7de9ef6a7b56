from __future__ import annotations

from typing import Any

import pytest

from efficientdet.errors import SettingError
from efficientdet.training.config import TrainConfig
from efficientdet.training.effects import refuse_unsuited


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 5}, "patience is 5 but has no effect: there is no validation split"),
        ({"best_metric": "ap50"}, "best_metric is ap50 but has no effect: there is no validation split"),
        ({"evaluate_every": 2}, "evaluate_every is 2 but has no effect"),
        ({"evaluate_images": 2}, "evaluate_images is 2 but has no effect"),
    ],
)
def test_settings_of_the_evaluation_need_a_validation_split(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        refuse_unsuited(TrainConfig(**settings), has_validation=False, stages=7)
    refuse_unsuited(TrainConfig(**settings), has_validation=True, stages=7)


@pytest.mark.parametrize("name", ["backbone_rate", "layer_decay"])
def test_rates_of_a_backbone_that_does_not_learn(name: str) -> None:
    settings: dict[str, Any] = {name: 0.5, "frozen_stages": 4}
    refuse_unsuited(TrainConfig(**settings), has_validation=True, stages=7)
    with pytest.raises(SettingError, match=f"{name} is 0.5 but has no effect: frozen_stages is 4"):
        refuse_unsuited(TrainConfig(**settings), has_validation=True, stages=4)


def test_batch_norms_and_layers_of_a_backbone_that_does_not_learn() -> None:
    with pytest.raises(SettingError, match="batch_norm is train but has no effect"):
        refuse_unsuited(TrainConfig(batch_norm="train", frozen_stages=7), has_validation=True, stages=7)
    with pytest.raises(SettingError, match=r"layer_decay is 0\.9 but has no effect: backbone_rate is 0"):
        refuse_unsuited(TrainConfig(backbone_rate=0.0, layer_decay=0.9), has_validation=True, stages=7)


def test_patience_longer_than_the_run() -> None:
    with pytest.raises(SettingError, match="patience is 5 but has no effect: the run has 5 evaluations"):
        refuse_unsuited(TrainConfig(patience=5, epochs=9, evaluate_every=2), has_validation=True, stages=7)
    refuse_unsuited(TrainConfig(patience=4, epochs=9, evaluate_every=2), has_validation=True, stages=7)
    refuse_unsuited(TrainConfig(patience=99, minutes=3), has_validation=True, stages=7)  # epochs are not known


def test_the_defaults_all_have_their_effect() -> None:
    for has_validation in (True, False):
        for stages in (-1, 4, 7):
            refuse_unsuited(TrainConfig(), has_validation, stages)


def test_stages_that_are_not_there() -> None:
    refuse_unsuited(TrainConfig(frozen_stages=4, layer_decay=0.5), has_validation=True, stages=5)
    with pytest.raises(SettingError, match="frozen_stages is 5; the backbone has 4 stages"):
        refuse_unsuited(TrainConfig(frozen_stages=5), has_validation=True, stages=4)


@pytest.mark.parametrize("settings", [{"frozen_stages": 1}, {"layer_decay": 0.9}])
def test_settings_by_stage_are_refused_where_the_stages_are_not_known(settings: dict[str, Any]) -> None:
    refuse_unsuited(TrainConfig(backbone_rate=0.1), has_validation=True, stages=-1)
    with pytest.raises(SettingError, match="the stages of a timm backbone are not known.*backbone_rate"):
        refuse_unsuited(TrainConfig(**settings), has_validation=True, stages=-1)
