"""Settings of the report: defaults, ranges and descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efficientdet.errors import unknown_name
from efficientdet.family import MODELS
from efficientdet.settings import check_settings, setting


@dataclass(frozen=True)
class ReportSettings:
    """What a report contains beyond what is counted."""

    weights: str | None = setting(
        None, "Checkpoint whose learned fusion weights are shown; by default the bundled models.", flag="-w"
    )
    timing: bool = setting(True, "Whether times are measured.")
    device: Literal["cpu", "cuda"] = setting("cpu", "Device on which times are measured: cpu or cuda.")
    largest_timed: str = setting("d2", "Largest model of the family, by multiply-adds, whose latency is measured.")

    def __post_init__(self) -> None:
        """Check types and choices.

        Raises:
            UnknownNameError: the device or the model is not known.
            SettingError: a value is of the wrong type; names it.
        """
        check_settings(self)
        if self.largest_timed not in MODELS:
            raise unknown_name("model", self.largest_timed, MODELS)
