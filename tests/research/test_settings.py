"""Settings of ablations and of the report."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_type_hints

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.research.settings import AblationOptions, AblationSettings, ReportSettings
from efficientdet.settings import names_of
from efficientdet.training.config import TrainConfig


def test_the_keywords_are_the_fields() -> None:
    assert set(get_type_hints(AblationOptions)) == set(names_of(AblationSettings, TrainConfig))
    own = get_type_hints(AblationSettings)
    assert {name: get_type_hints(AblationOptions)[name] for name in own} == own


def test_they_are_imported_without_torch_and_numpy() -> None:
    program = "import sys, efficientdet.research.settings; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"device": "gpu"}, UnknownNameError, "unknown device 'gpu'.*Known: cpu, cuda"),
        ({"timing": "no"}, SettingError, "timing is 'no'; it must be true or false"),
    ],
)
def test_what_a_report_cannot_be(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ReportSettings(**settings)
