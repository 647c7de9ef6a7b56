from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from efficientdet.errors import SettingError
from efficientdet.serving.settings import MOST_PIXELS, ServeSettings


def test_the_limit_of_pixels_is_pillows() -> None:
    assert MOST_PIXELS == Image.MAX_IMAGE_PIXELS
    assert ServeSettings().max_pixels == MOST_PIXELS


@pytest.mark.parametrize(
    "wrong",
    [{"port": 65536}, {"queue_size": 0}, {"max_megabytes": 0}, {"max_pixels": MOST_PIXELS + 1}, {"time_limit": 0}],
)
def test_a_limit_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        dataclasses.replace(ServeSettings(), **wrong)  # type: ignore[arg-type]


def test_a_request_that_would_never_find_room() -> None:
    with pytest.raises(SettingError, match="max_images is 16; it must be at most queue_size, which is 8"):
        ServeSettings(queue_size=8)
