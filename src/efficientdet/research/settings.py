"""The settings of ablations and of the report: defaults, ranges and descriptions. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efficientdet.settings import Settings, setting
from efficientdet.training.config import TrainOptions


@dataclass(frozen=True)
class AblationSettings(Settings):
    """Which feature networks and fusions are trained, and how often."""

    feature_networks: tuple[str, ...] = setting((), "Feature networks to compare, between commas; by default all.")
    fusions: tuple[str, ...] = setting((), "Fusions to compare, between commas; by default all.")
    every_pair: bool = setting(
        False, "Train each feature network with each fusion; else each with fast fusion, and each fusion in BiFPN."
    )
    seeds: int = setting(3, "Runs of each pair, with seeds 0, 1, ...", minimum=1)


class AblationOptions(TrainOptions, total=False):
    """The fields of `AblationSettings` and `TrainConfig` as keywords, for type checkers."""

    feature_networks: tuple[str, ...]
    fusions: tuple[str, ...]
    every_pair: bool
    seeds: int


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What a report measures beside what it counts."""

    timing: bool = setting(True, "Whether the fusions are timed.")
    device: Literal["cpu", "cuda"] = setting("cpu", "Device on which they are timed: cpu or cuda.")
