"""The settings of videos and tracking."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.settings import names_of
from efficientdet.video.settings import TrackOptions, TrackSettings, VideoOptions, VideoSettings


@pytest.mark.parametrize(("options", "settings"), [(VideoOptions, VideoSettings), (TrackOptions, TrackSettings)])
def test_the_keywords_are_the_fields(options: type, settings: type) -> None:
    assert get_type_hints(options) == {name: get_type_hints(settings)[name] for name in names_of(settings)}


def test_the_end_is_after_the_start() -> None:
    with pytest.raises(SettingError, match="end is 2.0; it must be after start, which is 2.0"):
        VideoSettings(start=2.0, end=2.0)


def test_unknown_trackers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sort'"):
        TrackSettings(track="short")  # type: ignore[arg-type]
