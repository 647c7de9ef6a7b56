"""Recipes: training settings that go together, under one name. Imports neither torch nor numpy."""

from __future__ import annotations

from efficientdet.errors import find_name
from efficientdet.training.config import TrainOptions

# What a recipe sets differently from the defaults of `TrainConfig`, which are the recipe `modern`.
RECIPES: dict[str, TrainOptions] = {
    "modern": {},
    # Section 5.1 and google/automl; the published AP belongs to hundreds of epochs on many images.
    "paper": {
        "optimizer": "sgd",
        "warmup_epochs": 1.0,
        "batch_norm": "auto",
        "backbone_rate": 1.0,
        "box_loss": "huber",
        "assignment": "iou",
    },
}


def recipe_settings(name: str) -> TrainOptions:
    """The settings of a recipe.

    Raises:
        UnknownNameError: there is no such recipe; lists them.
    """
    return RECIPES[find_name("recipe", name, RECIPES)]
