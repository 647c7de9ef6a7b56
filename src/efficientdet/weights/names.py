"""What a user calls weights -> the file they lie in: a path, a bundled or released name, or a place on a hub."""

from __future__ import annotations

from pathlib import Path

from efficientdet.errors import UnknownNameError, WeightsError, unknown_name
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.convert import released_checkpoint
from efficientdet.weights.download import cache_dir
from efficientdet.weights.hub import HUB_PREFIX, hub_file
from efficientdet.weights.registry import RELEASED, find_released
from efficientdet.weights.released import released_state

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names of the models that come inside the package."""
    return sorted(path.stem for path in BUNDLED_FOLDER.glob("*.safetensors"))


def cached_path(name: str) -> Path:
    """Where released weights lie, or will lie, as a checkpoint of ours.

    Raises:
        UnknownNameError: there are no such weights.
    """
    return cache_dir() / f"{find_released(name).name}.safetensors"


def find_weights(name_or_path: str | Path) -> Path:
    """Find the checkpoint that a name or path means; released weights are downloaded and converted at the first call.

    Args:
        name_or_path: a path; a bundled name (`people`); a released name (`d0`, `tf_efficientdet_d0`, `d0_ap`); or
            `hf://owner/repo`, `hf://owner/repo@revision` (see `hub`).

    Returns:
        Path of a safetensors file of ours.

    Raises:
        WeightsError: there is no file at the path, or the weights cannot be had; says which file to put where.
        UnknownNameError: the name is neither bundled nor released; lists both.
    """
    text = str(name_or_path)
    if text.startswith(HUB_PREFIX):
        return hub_file(text)
    path = Path(name_or_path)
    if path.is_file():
        return path
    if text in bundled_names():
        return BUNDLED_FOLDER / f"{text}.safetensors"
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    try:
        cached = cached_path(text)
    except UnknownNameError:
        raise unknown_name("weights", text, [*bundled_names(), *RELEASED]) from None
    if not cached.is_file():
        state, row = released_state(text)
        save_checkpoint(cached, *released_checkpoint(state, row))
    return cached
