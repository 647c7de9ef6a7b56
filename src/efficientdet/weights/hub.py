"""Checkpoints on the Hugging Face Hub: `hf://owner/repo`, or `hf://owner/repo@revision` for a fixed one."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from efficientdet.errors import WeightsError, as_error

HUB_PREFIX = "hf://"
FILE_NAME = "model.safetensors"
CARD_NAME = "README.md"


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
