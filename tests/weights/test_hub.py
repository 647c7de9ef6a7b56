"""The Hugging Face Hub: names, revisions, and what is said when it cannot be reached (its client is played)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from efficientdet.errors import SettingError, WeightsError
from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector, load
from efficientdet.weights.hub import FILE_NAME, hub_file, parse_hub_name
from efficientdet.weights.names import BUNDLED_FOLDER, find_weights
from efficientdet.weights.publish import push_to_hub

PEOPLE = BUNDLED_FOLDER / "people.safetensors"


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
        push_to_hub(PEOPLE, "owner/repo")


def test_a_file_that_is_too_large_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, sizes: list[int | None]) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("downloaded"))
    sizes[0] = 50_000_000_000
    with pytest.raises(WeightsError, match="model.safetensors has 50,000,000,000 bytes; the largest allowed are"):
        hub_file("hf://owner/repo")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in place of the hub: repositories are folders in it, with one more for each revision."""

    class Api:
        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            (tmp_path / repository).mkdir(parents=True, exist_ok=exist_ok)

        def create_commit(self, repository: str, operations: list[Any], commit_message: str) -> Any:
            for operation in operations:
                with operation.as_file() as content:
                    (tmp_path / repository / operation.path_in_repo).write_bytes(content.read())
            shutil.copytree(tmp_path / repository, tmp_path / f"{repository}@v1", dirs_exist_ok=True)
            return type("Commit", (), {"commit_url": "https://example.org/commit"})

    def download(repository: str, file: str, revision: str | None = None) -> str:
        return str(tmp_path / (f"{repository}@{revision}" if revision else repository) / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path


def test_a_detector_comes_back_from_the_hub_as_it_was(stand_in: Path) -> None:
    detector = load("people", backend="eager", score_threshold=0.4)
    assert detector.push_to_hub("owner/repo") == "https://example.org/commit"
    assert sorted(file.name for file in (stand_in / "owner" / "repo").iterdir()) == ["README.md", FILE_NAME]
    expected = detector.predict(sample_image())
    for again in (
        Detector.from_pretrained("owner/repo", backend="eager", score_threshold=0.4),
        Detector.from_pretrained("owner/repo", "v1", backend="eager", score_threshold=0.4),
        load("hf://owner/repo", backend="eager", score_threshold=0.4),
    ):
        assert again.info == detector.info
        assert again.predict(sample_image()).to_json() == expected.to_json()


def test_the_card_on_the_hub_is_classified(stand_in: Path) -> None:
    assert push_to_hub(PEOPLE, "owner/repo") == "https://example.org/commit"
    card = huggingface_hub.ModelCard.load(stand_in / "owner" / "repo" / "README.md").data
    assert (card.pipeline_tag, card.library_name, card.license) == ("object-detection", "efficientdet", "apache-2.0")
    assert card.datasets == ["people"] and "lite0" in card.tags and card.model_name == "owner/repo"
    assert [(one.metric_name, one.dataset_name, one.metric_value) for one in card.eval_results] == [
        ("AP", "people, val", 0.243), ("AP50", "people, val", 0.5395), ("AP75", "people, val", 0.1866),
    ]  # fmt: skip


def test_an_exported_file_is_not_pushed() -> None:
    detector = Detector(None, load("people").info, engine=load("people", backend="eager").engine)
    with pytest.raises(SettingError, match="runs an exported file"):
        detector.push_to_hub("owner/repo")


def test_a_push_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise OSError("not logged in")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(WeightsError, match="owner/repo: cannot be uploaded .not logged in"):
        push_to_hub(PEOPLE, "owner/repo")


def test_what_is_no_checkpoint_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"weights")
    with pytest.raises(WeightsError, match="x.safetensors"):
        push_to_hub(tmp_path / "x.safetensors", "owner/repo")
