"""The rows of released weights, and fetching one from a server that we run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientdet.errors import UnknownNameError, WeightsError
from efficientdet.family import MODELS, VARIANTS, find_spec
from efficientdet.images.letterbox import IMAGENET, LITE
from efficientdet.weights import registry
from efficientdet.weights.coco_classes import COCO_CATEGORIES, COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from efficientdet.weights.registry import ADVPROP, RELEASED, find_released
from efficientdet.weights.released import released_path, released_state


# ---- rows
def test_every_model_of_the_family_has_released_weights() -> None:
    assert {*MODELS, *VARIANTS} <= RELEASED.keys()
    assert {f"d{i}_ap" for i in range(6)} <= RELEASED.keys()
    assert len(RELEASED) == 23


@pytest.mark.parametrize("row", RELEASED.values(), ids=RELEASED)
def test_a_row_says_all_that_is_needed(row: registry.ReleasedWeights) -> None:
    assert find_spec(row.model).name == row.model
    assert re.fullmatch(
        r"https://github\.com/rwightman/efficientdet-pytorch/releases/download/v0\.1/[\w-]+\.pth", row.url
    )
    assert row.sha256_prefix is not None
    assert re.fullmatch(r"[0-9a-f]{8}", row.sha256_prefix)
    assert row.file_name.endswith(f"-{row.sha256_prefix}.pth")
    assert row.license == "Apache-2.0"
    assert row.num_classes == len(row.class_names) == len(row.category_ids) == 90
    assert 25 < row.ap < 56
    model = row.model if row.name.startswith("efficientdet") else f"tf_efficientdet_{row.name}"
    assert re.match(model + r"(_\d\d)?-", row.file_name)


def test_no_two_rows_share_a_file() -> None:
    assert len({row.url for row in RELEASED.values()}) == len(RELEASED)
    assert len({row.sha256_prefix for row in RELEASED.values()}) == len(RELEASED)


def test_pixels_are_those_of_the_training() -> None:
    for row in RELEASED.values():
        lite = find_spec(row.model).normalization == "lite"
        assert row.preprocessing == (ADVPROP if row.name.endswith("_ap") else LITE if lite else IMAGENET)
    # x * 2 / 255 - 1
    for pixel, number in ((0, -1.0), (255, 1.0)):
        assert (pixel - ADVPROP.mean[0]) / ADVPROP.std[0] == number


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("d0", "d0"), ("D0", "d0"), ("tf_efficientdet_d0", "d0"), ("efficientdet-d0", "d0"),
        ("efficientdet_d0", "efficientdet_d0"), ("efficientdet_d3", "d3"), ("tf_efficientdet_lite3x", "lite3x"),
        ("d0_ap", "d0_ap"), ("d0-ap", "d0_ap"), ("tf_efficientdet_d5_ap", "d5_ap"),
    ],
)  # fmt: skip
def test_aliases(alias: str, name: str) -> None:
    assert find_released(alias).name == name


@pytest.mark.parametrize("name", ["d9", "d6_ap", "people", "", "lite0_ap"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown released weights '{name}'.*Known: d0, d1"):
        find_released(name)


# ---- classes
def test_labels_are_cocos_ids_less_one() -> None:
    assert len(COCO_CATEGORIES) == 80
    assert COCO_CATEGORY_IDS == tuple(range(1, 91))
    assert (COCO_CLASS_NAMES[0], COCO_CLASS_NAMES[16], COCO_CLASS_NAMES[89]) == ("person", "cat", "toothbrush")
    assert len(set(COCO_CLASS_NAMES)) == 90
    unused = [i for i in COCO_CATEGORY_IDS if COCO_CLASS_NAMES[i - 1].startswith("unused")]
    assert unused == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert COCO_CLASS_NAMES[11] == "unused-12"


def test_classes_are_those_of_cocos_annotations(shared_data: Path) -> None:
    categories = json.loads((shared_data / "coco_tiny" / "instances.json").read_text())["categories"]
    assert {category["id"]: category["name"] for category in categories} == COCO_CATEGORIES


# ---- fetching
class Counting(SimpleHTTPRequestHandler):
    served: list[str]

    def __init__(self, *args: Any, served: list[str], **kwargs: Any) -> None:
        self.served = served
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.served.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A server that publishes `d0` as two tensors, a registry that points there, and an empty cache."""
    state = {"backbone.conv_stem.weight": torch.ones(2), "fpn.x": torch.zeros(3)}
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(state, folder / "whole.pth")
    digest = hashlib.sha256((folder / "whole.pth").read_bytes()).hexdigest()[:8]
    file = (folder / "whole.pth").rename(folder / f"tiny-{digest}.pth")
    served: list[str] = []
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))
    handler = partial(Counting, directory=str(folder), served=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/{file.name}"
        row = dataclasses.replace(RELEASED["d0"], url=url, sha256_prefix=digest)
        monkeypatch.setitem(registry.RELEASED, "d0", row)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield file, served
        server.shutdown()
        thread.join()


def test_released_weights_are_fetched_once_and_then_offline(release: tuple[Path, list[str]]) -> None:
    file, served = release
    state, row = released_state("tf_efficientdet_d0")
    assert list(state) == ["backbone.conv_stem.weight", "fpn.x"]
    assert (row.name, row.source) == ("d0", "effdet")
    assert released_path("d0").read_bytes() == file.read_bytes()
    file.unlink()
    assert list(released_state("d0")[0]) == list(state)
    assert served == [f"/{file.name}"]


def test_a_file_put_there_by_hand_is_used_if_it_is_the_right_one(release: tuple[Path, list[str]]) -> None:
    file, served = release
    released_path("d0").parent.mkdir()
    released_path("d0").write_bytes(file.read_bytes())
    released_state("d0")
    assert served == []
    released_path("d0").write_bytes(b"another file")
    released_state("d0")
    assert served == [f"/{file.name}"]


def test_what_is_not_published_any_more_says_what_to_do(release: tuple[Path, list[str]]) -> None:
    release[0].unlink()
    with pytest.raises(WeightsError, match="answers 404") as caught:
        released_state("d0")
    assert str(released_path("d0")) in str(caught.value)
