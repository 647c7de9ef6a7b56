"""benchmarks/ is no package: its modules import each other by their bare names, as its scripts do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))


@pytest.fixture
def folder() -> Path:
    return FOLDER
