"""What the tests of videos call often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def clip(clips: ModuleType) -> Callable[..., Path]:
    """Writes a tiny video."""
    writer: Callable[..., Path] = clips.write_clip
    return writer


@pytest.fixture(scope="session")
def numbers(clips: ModuleType) -> Callable[..., int]:
    """Tells the number of a frame of such a video from its pixels."""
    reader: Callable[..., int] = clips.number_of
    return reader
