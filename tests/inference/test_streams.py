from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import efficientdet as ed
from efficientdet.inference import streams as module
from efficientdet.inference.detector import Detector
from efficientdet.inference.streams import choose_streams, images_per_second

SIZE = (128, 128)
MANY = range(module.MANY)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path))


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def detector() -> Detector:
    pytest.importorskip("onnxruntime")
    return ed.load("people", backend="onnxruntime", image_size=128)


def measured(monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float]) -> list[int]:
    """What `images_per_second` says from here on; the returned list tells what it was asked."""
    asked = list[int]()

    def of(engine: object, image_size: tuple[int, int], streams: int) -> float:
        asked.append(streams)
        return speeds[streams]

    monkeypatch.setattr(module, "images_per_second", of)
    return asked


def test_the_fastest_choice_is_measured_once_and_remembered(
    detector: Detector, four_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = measured(monkeypatch, {4: 10.0, 2: 12.0})
    assert choose_streams(detector.engine, SIZE, [1, 2]) == 4 and asked == []  # not worth it
    assert choose_streams(detector.engine, SIZE, iter(MANY)) == 4 and asked == []  # who knows how many
    assert choose_streams(detector.engine, SIZE, MANY) == 2 and asked == [4, 2]
    assert choose_streams(detector.engine, SIZE, [1]) == 2 and asked == [4, 2]
    assert choose_streams(detector.engine, (256, 256), [1]) == 4  # another network's work
    (file,) = (tmp_path / "engines").glob("streams-*.json")
    assert json.loads(file.read_text()) == {"streams": 2, "images_per_second": {"4": 10.0, "2": 12.0}}
    file.write_text('{"streams": 3}')  # damaged
    assert choose_streams(detector.engine, SIZE, MANY) == 2 and asked == [4, 2, 4, 2]


def test_a_gain_within_the_noise_changes_nothing(
    detector: Detector, four_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, {4: 10.0, 2: 10.1})
    assert choose_streams(detector.engine, SIZE, MANY) == 4


@pytest.mark.parametrize(
    ("threads", "choices"), [(2, []), (3, []), (6, [6, 3]), (16, [16, 8, 4, 2]), (64, [64, 32, 16, 8])]
)
def test_the_cores_are_shared_out_evenly(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, threads: int, choices: list[int]
) -> None:
    monkeypatch.setattr(module, "thread_count", lambda: threads)
    asked = measured(monkeypatch, dict.fromkeys(choices, 1.0))
    assert choose_streams(detector.engine, SIZE, MANY) == threads and asked == choices


def test_what_was_chosen_finds_the_same(
    detector: Detector, four_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = list(np.random.default_rng(0).integers(0, 255, (6, 90, 120, 3), dtype=np.uint8))
    plain = [detector.predict(image, score_threshold=0.01) for image in images]
    monkeypatch.setattr(module, "MANY", len(images))
    measured(monkeypatch, {4: 1.0, 2: 2.0})
    found = list(detector.predict_many(images, score_threshold=0.01))
    assert list((tmp_path / "engines").glob("streams-*.json"))
    for one, other in zip(found, plain, strict=True):
        assert np.allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3) and np.allclose(one.scores, other.scores)


def test_an_end_to_end_file_is_measured_too(
    detector: Detector, four_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.1)
    path = tmp_path / "whole.onnx"
    ed.export(detector, path, end_to_end=True)
    for engine in (detector.engine, ed.load(path).engine):
        assert all(images_per_second(engine, SIZE, streams) > 0 for streams in (4, 2))
