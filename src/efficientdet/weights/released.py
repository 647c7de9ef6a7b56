"""Released weights fetched: downloaded once, verified, and opened without running anything that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efficientdet.errors import WeightsError
from efficientdet.weights.download import cache_dir, download
from efficientdet.weights.read_file import load_pickle_safely
from efficientdet.weights.registry import ReleasedWeights, find_released


def released_path(name: str) -> Path:
    """Where the published file of released weights lies, or will lie, in the cache.

    Raises:
        UnknownNameError: there are no such weights.
    """
    return cache_dir() / find_released(name).file_name


def released_state(name: str, progress: bool = True) -> tuple[dict[str, Any], ReleasedWeights]:
    """The state dict of released weights as published, and the row that describes it; downloads at the first call.

    Args:
        name: such as `d0`; see `registry.RELEASED`.
        progress: show a bar while downloading, where there is a terminal.

    Returns:
        The state, for `load_foreign(model, state, row.source)`, and its row.

    Raises:
        UnknownNameError: there are no such weights.
        WeightsError: the file can neither be found in the cache nor be had, or is not what was published; says which
            file to put where.
    """
    row = find_released(name)
    path = download(row.url, released_path(name), row.sha256_prefix, row.size_bytes, progress)
    state = load_pickle_safely(path)
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors")
    return state, row
