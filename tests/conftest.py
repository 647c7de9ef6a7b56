"""Fixtures for every test: where the data and the golden numbers lie that are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Building another engine for each of many small networks would take most of the tests' time. Tests of the others name
# them; processes that tests start inherit this.
os.environ["EFFICIENTDET_BACKEND"] = "eager"


def _shared_folder(name: str) -> Path:
    """A folder of shared material beside the checkout or under $EFFICIENTDET_SHARED; skips where absent."""
    beside_checkout = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("EFFICIENTDET_SHARED", beside_checkout)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set EFFICIENTDET_SHARED to the folder that holds '{name}'")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data sets, odd pictures and evaluator fixtures."""
    return _shared_folder("data")


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """Folder of golden numbers from the reference implementation."""
    return _shared_folder("parity")
