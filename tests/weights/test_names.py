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
from efficientdet.network.efficientdet import create_model
from efficientdet.weights import registry
from efficientdet.weights.checkpoint import read_info
from efficientdet.weights.foreign import to_foreign
from efficientdet.weights.names import BUNDLED_FOLDER, bundled_names, find_weights


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a server on this machine gives its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_released_weights_are_downloaded_converted_and_then_found_offline(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    torch.manual_seed(0)
    model = create_model("lite0")
    torch.save(to_foreign(model), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    row = dataclasses.replace(
        registry.RELEASED["lite0"], url=f"{address}/weights.pth", sha256_prefix=digest[:8], size_bytes=None
    )
    monkeypatch.setitem(registry.RELEASED, "lite0", row)
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))

    first = find_weights("lite0")
    info = read_info(first)
    assert info.class_names[0] == "person"
    assert info.spec.name == "lite0"
    assert info.about["license"] == "Apache-2.0"
    (folder / "weights.pth").unlink()
    assert find_weights("tf_efficientdet_lite0") == first

    from efficientdet.inference.detector import load

    state = load("lite0", device="cpu").model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_bundled_names_are_files_in_the_package() -> None:
    for name in bundled_names():
        assert find_weights(name) == BUNDLED_FOLDER / f"{name}.safetensors"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown weights 'd9'.*lite0"):
        find_weights("d9")


@pytest.mark.parametrize("path", ["no/such/file", "gone.safetensors"])
def test_a_path_without_a_file_is_named(path: str) -> None:
    with pytest.raises(WeightsError, match=f"{path}: no such weights file"):
        find_weights(path)
