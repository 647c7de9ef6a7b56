"""The golden numbers and the maker of their weights, images and head outputs."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent


@functools.lru_cache
def _read(name: str) -> Any:
    path = FOLDER / "golden" / name
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Reads a file of the golden folder; shared between tests, so not to be written into."""
    return _read


@pytest.fixture(scope="session")
def filler() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_filler", FOLDER / "filler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
