"""Refuses settings that do not suit a run, or would have no effect on it. Imports neither torch nor numpy."""

from __future__ import annotations

import math

from efficientdet.errors import SettingError
from efficientdet.training.config import TrainConfig

# Settings of the evaluation, and of what learns in the backbone.
OF_EVALUATION = ("patience", "best_metric", "evaluate_every", "evaluate_images")
OF_THE_BACKBONE = ("backbone_rate", "layer_decay")


def refuse_unsuited(config: TrainConfig, has_validation: bool, stages: int) -> None:
    """Refuse settings that do not suit the backbone, or would have no effect on this run.

    Args:
        config: the settings.
        has_validation: whether there is a validation split.
        stages: number of stages of the backbone above its stem; -1 where they are not known.

    Raises:
        SettingError: names the setting, and says why it does not suit or has no effect.
    """
    if stages < 0 and (config.frozen_stages or config.layer_decay != 1):
        raise SettingError(
            f"frozen_stages is {config.frozen_stages} and layer_decay is {config.layer_decay}, but the stages of a "
            "timm backbone are not known; leave them at 0 and 1, and use backbone_rate for the whole backbone"
        )
    if config.frozen_stages > max(stages, 0):
        raise SettingError(f"frozen_stages is {config.frozen_stages}; the backbone has {stages} stages")

    def refuse(name: str, why: str) -> None:
        raise SettingError(f"{name} is {getattr(config, name)} but has no effect: {why}")

    defaults = TrainConfig()
    for name in OF_EVALUATION:
        if not has_validation and getattr(config, name) != getattr(defaults, name):
            refuse(name, "there is no validation split to evaluate on; add one, or leave the setting out")
    evaluations = math.ceil(config.epochs / config.evaluate_every)
    if config.patience is not None and config.minutes is None and config.patience >= evaluations:
        refuse("patience", f"the run has {evaluations} evaluations; choose fewer, or more epochs")
    if 0 <= stages <= config.frozen_stages:
        for name in OF_THE_BACKBONE:
            if getattr(config, name) != getattr(defaults, name):
                refuse(name, f"frozen_stages is {config.frozen_stages}, so that no stage of the backbone learns")
        if config.batch_norm == "train":
            refuse("batch_norm", "the backbone's stages are all frozen, and their batch norms with them")
    if config.backbone_rate == 0 and config.layer_decay != 1:
        refuse("layer_decay", "backbone_rate is 0, so that no stage of the backbone learns")
