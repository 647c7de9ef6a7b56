"""What a user calls weights, and the checkpoint that it means: a path, a bundled or released name, or a repository."""

from __future__ import annotations

import os
from pathlib import Path

from efficientdet.cache import cache_dir, cached, sha256_of
from efficientdet.errors import UnknownNameError, WeightsError, find_name, unknown_name
from efficientdet.weights.checkpoint import is_intact, save_checkpoint
from efficientdet.weights.convert import released_checkpoint
from efficientdet.weights.download import download
from efficientdet.weights.hub import HUB_PREFIX, hub_file
from efficientdet.weights.read_file import read_state
from efficientdet.weights.registry import RELEASED, ReleasedWeights, find_released

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names of the models that come inside the package."""
    return sorted(path.stem for path in BUNDLED_FOLDER.glob("*.safetensors"))


def cached_path(name: str) -> Path:
    """Where the cache keeps released weights as a checkpoint.

    Raises:
        UnknownNameError: there are no such weights.
    """
    return cache_dir() / f"{find_released(name).name}.safetensors"


def find_weights(name_or_path: str | Path) -> Path:
    """Find the checkpoint that a name or path means. Released weights are downloaded and converted at the first call.

    Args:
        name_or_path: a path; a bundled name (`people`); a released name (`d0`, `d0-ap`; see `find_released`); or
            `hf://owner/repo`, `hf://owner/repo@revision` (see `hub`).

    Returns:
        Path of a checkpoint, or of whatever file the path names.

    Raises:
        WeightsError: there is no file at the path, or the weights cannot be downloaded; says which file to put where.
        UnknownNameError: the name is neither bundled nor released; lists both.
    """
    text = str(name_or_path)
    if text.startswith(HUB_PREFIX):
        return hub_file(text)
    path = Path(name_or_path)
    if os.path.isfile(path):
        return path
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    try:
        return BUNDLED_FOLDER / f"{find_name('bundled weights', text, bundled_names())}.safetensors"
    except UnknownNameError:
        pass
    try:
        row = find_released(text)
    except UnknownNameError:
        raise unknown_name("weights", text, [*bundled_names(), *RELEASED]) from None
    return cached(f"{row.name}.safetensors", is_intact, lambda path: _convert_released(row, path))


def _convert_released(row: ReleasedWeights, path: Path) -> None:
    published = cached(
        row.file,
        lambda file: sha256_of(file).startswith(row.sha256_prefix),
        lambda file: download(row.url, file, row.sha256_prefix),
    )
    save_checkpoint(path, *released_checkpoint(read_state(published), row))
