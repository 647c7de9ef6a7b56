"""What a user calls weights, and the checkpoint that it means: a path, a bundled or released name, or `hf://owner/repo`."""

from __future__ import annotations

import dataclasses
import os
import re
from contextlib import suppress
from pathlib import Path

from efficientdet.cache import cache_dir, cached, sha256_of
from efficientdet.errors import WeightsError, as_error, find_name
from efficientdet.family import without_prefix
from efficientdet.weights.registry import LICENSE, RELEASED, SOURCE, ReleasedWeights

HUB_PREFIX = "hf://"
FILE_NAME = "model.safetensors"
CARD_NAME = "README.md"


BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """Split `hf://owner/repo@revision` into `owner/repo` and the revision, None for the default branch.

    Raises:
        WeightsError: the name has another form.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if match is None:
        raise WeightsError(f"'{name}' does not name a repository; write hf://owner/repo or hf://owner/repo@revision")
    return match.group(1), match.group(2)


def hub_file(name: str) -> Path:
    """Download `model.safetensors` of a repository, or take it from the hub's own cache.

    Raises:
        WeightsError: the repository, revision or file does not exist, the file is too large, or the hub cannot be
            reached and the file is not cached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from efficientdet.weights.download import LARGEST

    repository, revision = parse_hub_name(name)
    size = None
    with suppress(Exception):  # the download meets the same fault and says so, or finds the file in its cache
        size = get_hf_file_metadata(hf_hub_url(repository, FILE_NAME, revision=revision)).size
    if size is not None and size > LARGEST:
        raise WeightsError(f"{name}: {FILE_NAME} has {size:,} bytes; the largest allowed are {LARGEST:,}")
    with as_error(WeightsError, f"{name}: cannot be downloaded"):
        try:
            return Path(hf_hub_download(repository, FILE_NAME, revision=revision))
        except LocalEntryNotFoundError as error:
            raise WeightsError(
                f"{name}: the hub cannot be reached, and {FILE_NAME} is not in its cache. Download the file elsewhere "
                "and give its path instead"
            ) from error
        except EntryNotFoundError as error:
            raise WeightsError(f"{name}: the repository has no {FILE_NAME} (at this revision)") from error


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
