"""The Hugging Face Hub: names, revisions, and what is said when it cannot be reached (its client is played)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from efficientdet.errors import WeightsError
from efficientdet.weights.hub import FILE_NAME, hub_file, parse_hub_name, push_to_hub
from efficientdet.weights.names import find_weights


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The size that the hub states for every file."""
    stated: list[int | None] = [None]
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: type("Metadata", (), {"size": stated[0]}))
    return stated


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://owner/repo", ("owner/repo", None)),
        ("hf://owner/repo@v1.0", ("owner/repo", "v1.0")),
        ("hf://o-w.n/r_e@refs/pr/1", ("o-w.n/r_e", "refs/pr/1")),
    ],
)
def test_names_are_split(name: str, expected: tuple[str, str | None]) -> None:
    assert parse_hub_name(name) == expected


@pytest.mark.parametrize("name", ["hf://repo", "hf://a/b/c", "hf://a/b@", "hf:///b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="hf://owner/repo"):
        find_weights(name)


def test_the_revision_reaches_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def fake(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    assert hub_file("hf://owner/repo@abc") == tmp_path / "model.safetensors"
    assert asked == [("owner/repo", FILE_NAME, "abc")]


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match="hf://owner/repo: the hub cannot be reached.*give its path"):
        hub_file("hf://owner/repo")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("stream ended"), ConnectionError("reset"), ValueError("bad revision"), KeyError("etag"),
        OSError(36, "File name too long"), type("OddHttpError", (Exception,), {})(""),
    ],
)  # fmt: skip
def test_whatever_the_hub_raises_is_an_error_of_ours(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    with pytest.raises(WeightsError, match=r"hf://owner/repo: cannot be downloaded \(.+\)"):
        hub_file("hf://owner/repo")
    monkeypatch.setattr(huggingface_hub, "HfApi", fail)
    with pytest.raises(WeightsError, match=r"owner/repo: cannot be uploaded \(.+\)"):
        push_to_hub(Path(__file__), "owner/repo", "# card")


def test_a_file_that_is_too_large_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, sizes: list[int | None]) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("downloaded"))
    sizes[0] = 50_000_000_000
    with pytest.raises(WeightsError, match="model.safetensors has 50,000,000,000 bytes; the largest allowed are"):
        hub_file("hf://owner/repo")


def test_a_push_sends_checkpoint_and_card_in_one_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.safetensors"
    checkpoint.write_bytes(b"weights")
    calls: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append(("create", repository, options["exist_ok"]))

        def create_commit(self, repository: str, operations: list[Any], commit_message: str) -> Any:
            calls.append(("commit", repository, [operation.path_in_repo for operation in operations]))
            return type("Commit", (), {"commit_url": "https://example.org/commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push_to_hub(checkpoint, "owner/repo", "# card") == "https://example.org/commit"
    assert calls == [("create", "owner/repo", True), ("commit", "owner/repo", [FILE_NAME, "README.md"])]


def test_a_push_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.safetensors"
    checkpoint.write_bytes(b"weights")

    class Api:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise OSError("not logged in")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(WeightsError, match="owner/repo: cannot be uploaded .not logged in"):
        push_to_hub(checkpoint, "owner/repo", "# card")
