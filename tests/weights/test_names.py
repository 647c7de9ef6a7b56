"""Names of weights lead to files: bundled, released through a cache, on a hub, or a path; the rest is explained."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from efficientdet.errors import SettingError, UnknownNameError, WeightsError
from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector, load
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights import registry
from efficientdet.weights.checkpoint import read_info
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import to_foreign
from efficientdet.weights.model_card import push_to_hub
from efficientdet.weights.names import (
    BUNDLED_FOLDER,
    FILE_NAME,
    bundled_names,
    cached_path,
    find_known,
    find_weights,
    hub_file,
    parse_hub_name,
)


class Counting(http.server.SimpleHTTPRequestHandler):
    served: list[str] = []

    def do_GET(self) -> None:
        self.served.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> EfficientDet:
    torch.manual_seed(0)
    return create_model("lite0")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: EfficientDet) -> Iterator[Path]:
    """A file that a server on this machine gives as the released weights of `lite0`, and an empty cache."""
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(to_foreign(model), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    file = (folder / "new.pth").rename(folder / f"lite0-{digest[:8]}.pth")
    Counting.served.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(folder))) as server:
        row = dataclasses.replace(registry.RELEASED["lite0"], file=file.name)
        monkeypatch.setitem(registry.RELEASED, "lite0", row)
        monkeypatch.setattr(registry, "RELEASE_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield file
        server.shutdown()
        thread.join()


def test_released_weights_are_downloaded_once_converted_and_then_found_offline(
    published: Path, model: EfficientDet
) -> None:
    first = find_weights("lite0")
    assert first == cached_path("lite0")
    info = read_info(first)
    assert info.class_names[0] == "person"
    assert info.spec.name == "lite0"
    assert info.about["license"] == "Apache-2.0"
    published.unlink()
    assert find_weights("tf_efficientdet_lite0") == first
    assert Counting.served == [f"/{published.name}"]
    state = load("lite0", device="cpu").model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_damaged_cache_is_made_again_with_one_line(
    published: Path, model: EfficientDet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = find_weights("lite0")
    by_hand = path.with_name(published.name)
    whole = path.read_bytes()
    for damaged in (path, by_hand):
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1000] + bytes(1000))
        path.write_bytes(bytes(len(whole)) if damaged is by_hand else path.read_bytes())
        capsys.readouterr()
        assert find_weights("lite0").read_bytes() == whole
        said = capsys.readouterr().err
        assert f"efficientdet: {damaged} is damaged and is made again\n" in said
    assert len(Counting.served) == 2  # the download was damaged too


def test_a_cache_that_cannot_be_written_is_worked_around(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "file" / "cache"))
    assert read_info(find_weights("lite0")).spec.name == "lite0"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Set EFFICIENTDET_CACHE" in said


def test_a_file_put_there_by_hand_is_used_if_it_is_the_right_one(published: Path) -> None:
    by_hand = cached_path("lite0").with_name(published.name)
    by_hand.parent.mkdir()
    by_hand.write_bytes(published.read_bytes())
    find_weights("lite0")
    assert Counting.served == []
    cached_path("lite0").unlink()
    by_hand.write_bytes(b"another file")
    find_weights("lite0")
    assert Counting.served == [f"/{published.name}"]
    assert by_hand.read_bytes() == published.read_bytes()


def test_what_is_not_published_any_more_says_what_to_do(published: Path) -> None:
    published.unlink()
    with pytest.raises(WeightsError, match="answers 404") as caught:
        find_weights("lite0")
    assert str(cached_path("lite0").with_name(published.name)) in str(caught.value)


def test_bundled_names_are_files_in_the_package() -> None:
    assert bundled_names() == ["cells", "people"]
    for name in bundled_names():
        assert find_weights(name) == find_weights(name.upper()) == BUNDLED_FOLDER / f"{name}.safetensors"


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("d0", "d0"), ("D0", "d0"), ("tf_efficientdet_d0", "d0"), ("efficientdet-d0", "d0"),
        ("efficientdet_d0", "d0"), ("efficientdet_d3", "d3"), ("tf_efficientdet_lite3x", "lite3x"),
        ("d0_symmetric", "d0-symmetric"), ("D1-Symmetric", "d1-symmetric"),
        ("d0_ap", "d0-ap"), ("d0-ap", "d0-ap"), ("tf_efficientdet_d5_ap", "d5-ap"),
    ],
)  # fmt: skip
def test_aliases(alias: str, name: str) -> None:
    assert find_known(alias) == name


@pytest.mark.parametrize("name", ["d9", "d6-ap", "", "lite0-ap"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown weights '{name}'.*Known: cells, people, d0, d1"):
        find_known(name)


@pytest.mark.parametrize("name", ["d9", "x" * 300, "a\0b"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown weights '.*people, d0.*lite0"):
        find_weights(name)


@pytest.mark.parametrize("path", ["no/such/file", "gone.safetensors", f"{'x' * 300}.safetensors"])
def test_a_path_without_a_file_is_named(path: str) -> None:
    with pytest.raises(WeightsError, match=f"{path}: no such weights file"):
        find_weights(path)


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
        ("AP", "people, val", 0.2891), ("AP50", "people, val", 0.605), ("AP75", "people, val", 0.2415),
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
