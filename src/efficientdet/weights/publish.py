"""A checkpoint and its model card to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from efficientdet.errors import WeightsError, as_error
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import read_info, save_checkpoint
from efficientdet.weights.hub import CARD_NAME, FILE_NAME, HUB_PREFIX, parse_hub_name
from efficientdet.weights.info import CheckpointInfo
from efficientdet.weights.model_card import model_card


def push_to_hub(checkpoint: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a checkpoint with its model card in one commit. A repository that does not exist is made.

    Args:
        checkpoint: a checkpoint of ours.
        repository: `owner/repo`.
        private: make a new repository private.

    Returns:
        The address of the commit.

    Raises:
        WeightsError: the file is not a checkpoint of ours, you are not logged in or not allowed, or the hub cannot be
            reached; says which.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    parse_hub_name(HUB_PREFIX + repository)
    card = model_card(HUB_PREFIX + repository, read_info(checkpoint))
    with as_error(WeightsError, f"{repository}: cannot be uploaded"):
        files = [CommitOperationAdd(FILE_NAME, str(checkpoint)), CommitOperationAdd(CARD_NAME, card.encode())]
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, files, commit_message="Upload a checkpoint of efficientdet")
    return str(commit.commit_url)


def push_network(network: EfficientDet, info: CheckpointInfo, repository: str, *, private: bool = False) -> str:
    """Upload a network with its facts; see `push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE_NAME
        save_checkpoint(file, network.state_dict(), info)
        return push_to_hub(file, repository, private=private)
