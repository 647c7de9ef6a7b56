"""The settings of an operating point: defaults, ranges and descriptions. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from efficientdet.errors import SettingError
from efficientdet.settings import Settings, setting

# What a threshold may be chosen for, instead of the best F1.
AIMS = {
    "min_precision": "a precision of at least {}",
    "min_recall": "a recall of at least {}",
    "false_positive_cost": "the lowest cost, where a false positive costs {} of a missed object",
}


@dataclass(frozen=True)
class ThresholdSettings(Settings):
    """What a score threshold is chosen for; without any of them, for the best F1."""

    min_precision: float | None = setting(
        None,
        "Share of detections that must be right: the score threshold is the one that then finds most objects.",
        above=0, maximum=1,
    )  # fmt: skip
    min_recall: float | None = setting(
        None, "Share of objects that must be found: the score threshold is the highest that finds them.",
        above=0, maximum=1,
    )  # fmt: skip
    false_positive_cost: float | None = setting(
        None, "Cost of a false positive where a missed object costs 1: the score threshold is the cheapest.", above=0
    )
    by_class: bool = setting(False, "Choose a score threshold for each class instead of one for all.")

    def __post_init__(self) -> None:
        """Check the ranges, and that there is one aim; a SettingError names what is wrong."""
        super().__post_init__()
        aims = [name for name in AIMS if getattr(self, name) is not None]
        if len(aims) > 1:
            raise SettingError(f"{' and '.join(aims)} are given; a threshold is chosen for one of them")

    @property
    def aim(self) -> str:
        """What the threshold is chosen for, in words."""
        chosen = [text.format(getattr(self, name)) for name, text in AIMS.items() if getattr(self, name) is not None]
        return chosen[0] if chosen else "the best F1"
