"""Names of weights lead to files: bundled, released through a cache, on a hub, or a path; the rest is explained."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from efficientdet.errors import UnknownNameError, WeightsError
from efficientdet.inference.detector import load
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights import registry
from efficientdet.weights.checkpoint import read_info
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import to_foreign
from efficientdet.weights.names import BUNDLED_FOLDER, bundled_names, cached_path, find_known, find_weights


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
