from __future__ import annotations

import pytest

from efficientdet.errors import UnknownNameError
from efficientdet.settings import changed
from efficientdet.training.config import LossSettings, TrainConfig
from efficientdet.training.recipes import RECIPES, recipe_settings


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_made_of_settings(name: str) -> None:
    config = changed(TrainConfig(), recipe_settings(name))
    assert (config == TrainConfig()) is (name == "modern")


def test_the_paper_has_its_own_optimizer_losses_and_augmentation() -> None:
    paper = changed(TrainConfig(), recipe_settings("paper"))
    assert paper.optimizer == "sgd" and paper.peak_learning_rate() == pytest.approx(0.01)
    assert paper.box_loss == "huber" and paper.loss == LossSettings()
    assert paper.scale_range() == (0.5, 1.5)


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="unknown recipe 'papr'.*paper"):
        recipe_settings("papr")
