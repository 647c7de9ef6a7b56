"""Settings of the report."""

from __future__ import annotations

from typing import Any

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.research.settings import ReportSettings


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"device": "gpu"}, UnknownNameError, "unknown device 'gpu'.*Known: cpu, cuda"),
        ({"largest_timed": "d9"}, UnknownNameError, "unknown model 'd9'"),
        ({"timing": "no"}, SettingError, "timing is 'no'; it must be true or false"),
    ],
)
def test_what_a_report_cannot_be(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ReportSettings(**settings)
