"""What a user calls weights, and the checkpoint that it means: a path, a bundled or released name, or a repository."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from efficientdet.cache import cache_dir, cached, sha256_of
from efficientdet.errors import WeightsError, find_name
from efficientdet.family import without_prefix
from efficientdet.weights.hub import HUB_PREFIX, hub_file
from efficientdet.weights.registry import LICENSE, RELEASED, SOURCE, ReleasedWeights

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names of the models that come inside the package."""
    return sorted(path.stem for path in BUNDLED_FOLDER.glob("*.safetensors"))


def find_known(name: str) -> str:
    """The bundled or released name that is meant: case, `_`, `-` and prefixes make no difference, as in `find_spec`.

    Raises:
        UnknownNameError: the name is neither bundled nor released; lists both.
    """
    return find_name("weights", without_prefix(name), [*bundled_names(), *RELEASED])


def cached_path(name: str) -> Path:
    """Where the cache keeps released weights as a checkpoint."""
    return cache_dir() / f"{name}.safetensors"


def find_weights(name_or_path: str | Path) -> Path:
    """Find the checkpoint that a name or path means. Released weights are downloaded and converted at the first call.

    Args:
        name_or_path: a path; a bundled name (`people`); a released name (`d0`, or `d0-ap` to `d5-ap` for the AdvProp
            weights); or `hf://owner/repo`, `hf://owner/repo@revision` (see `hub`).

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
    name = find_known(text)
    if name in bundled_names():
        return BUNDLED_FOLDER / f"{name}.safetensors"

    from efficientdet.weights.checkpoint import is_intact

    return cached(f"{name}.safetensors", is_intact, lambda path: _convert_released(RELEASED[name], path))


def _convert_released(row: ReleasedWeights, path: Path) -> None:
    from efficientdet.weights.checkpoint import save_checkpoint
    from efficientdet.weights.convert import convert_file
    from efficientdet.weights.download import download

    published = cached(
        row.file,
        lambda file: sha256_of(file).startswith(row.sha256_prefix),
        lambda file: download(row.url, file, row.sha256_prefix),
    )
    network, info = convert_file(published, row.model, SOURCE)
    info = dataclasses.replace(
        info,
        preprocessing=row.preprocessing,
        metrics={"ap": row.ap / 100, "data": "COCO val2017, stated by the publisher"},
        about={"license": LICENSE, "source": row.url, "data": "COCO train2017", "note": row.note},
    )
    save_checkpoint(path, network.state_dict(), info)
