"""Fixtures for every test: where the data and the golden numbers lie that are not part of the repository."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

# Building another engine for each of many small networks would take most of the tests' time. Tests of the others name
# them; processes that tests start inherit this.
os.environ["EFFICIENTDET_BACKEND"] = "eager"
# Many trainings in one process, beside others: it should give its memory back.
os.environ["EFFICIENTDET_KEEP_MEMORY"] = "0"


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


@pytest.fixture(scope="session")
def shapes() -> ModuleType:
    """The maker of tiny data sets, and a network small enough for them."""
    spec = importlib.util.spec_from_file_location("shapes", Path(__file__).parent / "shapes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
