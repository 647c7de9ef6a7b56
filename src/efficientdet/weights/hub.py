"""Checkpoints on the Hugging Face Hub: `hf://owner/repo`, with a revision pinned by `@revision`."""

from __future__ import annotations

import re
from pathlib import Path

from efficientdet.errors import WeightsError

HUB_PREFIX = "hf://"
FILE_NAME = "model.safetensors"
CARD_NAME = "README.md"


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """Split `hf://owner/repo@revision` into `owner/repo` and the revision, None for the default branch.

    Raises:
        WeightsError: not of this form.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if match is None:
        raise WeightsError(f"'{name}' is no place on the hub; write hf://owner/repo or hf://owner/repo@revision")
    return match.group(1), match.group(2)


def hub_file(name: str) -> Path:
    """Download `model.safetensors` of a repository once, or take it from the hub's cache.

    Raises:
        WeightsError: the repository, revision or file does not exist, or it cannot be reached and is not cached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repository, revision = parse_hub_name(name)
    try:
        return Path(hf_hub_download(repository, FILE_NAME, revision=revision))
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{name}: the hub cannot be reached, and {FILE_NAME} is not in its cache. Download it elsewhere and "
            "give the file's path instead"
        ) from error
    except EntryNotFoundError as error:
        raise WeightsError(f"{name}: the repository has no {FILE_NAME} (at this revision)") from error
    except HfHubHTTPError as error:
        raise WeightsError(f"{name}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise WeightsError(f"{name}: cannot be downloaded ({error})") from error


def push_to_hub(checkpoint: str | Path, repository: str, card: str, *, private: bool = False) -> str:
    """Upload a checkpoint with its model card; the repository is made where it does not exist.

    Args:
        checkpoint: a safetensors file of ours.
        repository: `owner/repo`.
        card: the model card in markdown, as `analysis.cards.model_card` writes it.
        private: make a new repository private.

    Returns:
        The address of the commit.

    Raises:
        WeightsError: not logged in, not allowed, or not reachable; says why.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    parse_hub_name(HUB_PREFIX + repository)
    api = HfApi()
    operations = [
        CommitOperationAdd(FILE_NAME, str(checkpoint)),
        CommitOperationAdd(CARD_NAME, card.encode()),
    ]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="Upload a checkpoint of efficientdet")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise WeightsError(f"{repository}: cannot be uploaded ({str(error).splitlines()[0]})") from error
    return str(commit.commit_url)
