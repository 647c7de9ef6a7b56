"""End-to-end files as detectors, without torch; and the one that `predict` keeps in the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientdet.errors import SettingError
from efficientdet.exporting import cold_start
from efficientdet.exporting.cold_start import load_quickly
from efficientdet.exporting.export import export
from efficientdet.images.convert import RgbImage
from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.exported import RUNNERS
from efficientdet.inference.engines.session import EndToEndEngine

pytest.importorskip("onnxruntime")
SETTINGS: dict[str, Any] = {"device": "cpu", "backend": "onnxruntime", "image_size": 128}
# Predicts without torch, from an end-to-end file or by the command line.
SCRIPT = """
import sys
from efficientdet import cli, load
if sys.argv[1].endswith((".onnx", ".xml")):
    print(load(sys.argv[1]).predict(sys.argv[2]).scores)
else:
    sys.argv[1:1] = ["predict"]
    cli.main()
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(cache))
    return load_quickly("people", **SETTINGS)


def _same(detector: Detector, other: Detector, image: RgbImage, **settings: Any) -> None:
    found, wanted = detector.predict(image, **settings), other.predict(image, **settings)
    assert len(found) == len(wanted) > 0
    np.testing.assert_allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=0.01)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    assert np.array_equal(found.labels, wanted.labels)
    assert found.class_names == wanted.class_names


def test_it_finds_what_the_network_finds(quick: Detector, people: Detector, portrait: RgbImage, wide: RgbImage) -> None:
    assert isinstance(quick.engine, EndToEndEngine)
    assert quick.postprocess.score_threshold == 0.3  # the default, not the file's own
    for image in (portrait, wide):
        _same(quick, people, image, score_threshold=0.07)
    images = [portrait, wide, portrait]
    many = list(quick.predict_many(images, score_threshold=0.07))
    assert [len(found) for found in many] == [len(quick.predict(image, score_threshold=0.07)) for image in images]
    best = quick.predict(portrait, score_threshold=0.07, max_detections=1)
    assert len(best) == 1
    assert best.scores[0] == many[0].scores[0]


def test_it_is_made_once_and_serves_every_higher_threshold(
    quick: Detector, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    assert len(list(cache.glob("engines/*-detect.onnx"))) == 1
    monkeypatch.setattr(cold_start, "_make", lambda *_: pytest.fail("made again"))
    other = load_quickly("people", score_threshold=0.6, max_detections=5, **SETTINGS)
    assert other.postprocess.score_threshold == 0.6


def test_a_damaged_file_is_made_again(
    quick: Detector, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = cache.glob("engines/*-detect.onnx")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    monkeypatch.setattr(cold_start, "_make", lambda *arguments: arguments[-1].write_bytes(whole))
    load_quickly("people", **SETTINGS)
    assert "is damaged and is made again" in capsys.readouterr().err
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "settings", [{"nms": "soft"}, {"backend": "eager"}, {"rectangular": True}, {"preprocess": "official"}]
)
def test_where_there_can_be_none_it_is_load(settings: dict[str, Any], quick: Detector) -> None:
    detector = load_quickly("people", **{**SETTINGS, "backend": "auto", **settings})
    assert not isinstance(detector.engine, EndToEndEngine)


def test_a_file_that_is_not_equal_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientdet.exporting import export as module
    from efficientdet.exporting.parity import ParityError

    tried = []

    def fail(*arguments: Any, **settings: Any) -> None:
        tried.append(arguments)
        raise ParityError.__new__(ParityError, "boxes differ")

    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "export", fail)
    for _ in range(2):
        assert not isinstance(load_quickly("people", **SETTINGS).engine, EndToEndEngine)
    assert len(tried) == 1


@pytest.mark.parametrize("suffix", RUNNERS)
def test_an_end_to_end_file_is_a_detector(suffix: str, people: Detector, portrait: RgbImage, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / f"people{suffix}"
    export(people, path, end_to_end=True)
    _run_without_torch(path, sample_image())
    detector = load(path)
    _same(detector, people, portrait)
    for name, value in {"score_threshold": 0.01, "iou_threshold": 0.6, "max_detections": 1000, "nms": "soft"}.items():
        with pytest.raises(SettingError, match=f"^{name} is .* inside the end-to-end file"):
            detector.predict(portrait, **{name: value})  # type: ignore[call-overload]
    with pytest.raises(SettingError, match="^iou_threshold is"):
        load(path, iou_threshold=0.9)


def test_the_command_imports_no_torch_from_the_second_time_on(quick: Detector, tmp_path: Path) -> None:
    options = ("--backend", "onnxruntime", "--device", "cpu", "--image-size", "128", "--out", str(tmp_path / "out"))
    _run_without_torch(sample_image(), *options)
    assert (tmp_path / "out" / "detections.json").is_file()


def _run_without_torch(*arguments: object) -> None:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
