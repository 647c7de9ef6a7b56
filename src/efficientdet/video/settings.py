"""The settings of reading a video and of tracking: defaults, ranges and descriptions. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from efficientdet.errors import SettingError
from efficientdet.settings import Settings, setting


@dataclass(frozen=True)
class VideoSettings(Settings):
    """Which frames of a video are read, and what is done with those of a live source."""

    every: int = setting(1, "Step between the frames that are read: 1 reads all, 3 every third.", minimum=1)
    start: float = setting(0.0, "Time in the video, in seconds, of the first frame that is read.", minimum=0)
    end: float | None = setting(None, "Time in the video, in seconds, at which reading ends.", above=0)
    reconnect: float = setting(
        60.0, "Seconds without a frame after which a live source is given up; until then it is opened again.", minimum=0
    )

    def __post_init__(self) -> None:
        """Check types and ranges, and that `end` is after `start`; a SettingError names what is wrong."""
        super().__post_init__()
        if self.end is not None and self.end <= self.start:
            raise SettingError(f"end is {self.end}; it must be after start, which is {self.start}")


@dataclass(frozen=True)
class TrackSettings(Settings):
    """How objects are followed through a video."""

    track: Literal["bytetrack", "sort"] | None = setting(
        None, "Tracker that gives each object an id: bytetrack (Zhang et al. 2022) or sort (Bewley et al. 2016)."
    )


class VideoOptions(TypedDict, total=False):
    """The fields of `VideoSettings` as keywords, for type checkers."""

    every: int
    start: float
    end: float | None
    reconnect: float


class TrackOptions(TypedDict, total=False):
    """The fields of `TrackSettings` as keywords, for type checkers."""

    track: Literal["bytetrack", "sort"] | None
