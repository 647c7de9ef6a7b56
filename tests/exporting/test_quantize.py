"""Quantized files: close to the network, loadable, held to their bound."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from efficientdet.cli import app
from efficientdet.data.read_split import read_split
from efficientdet.errors import MissingExtraError, SettingError, UnknownNameError
from efficientdet.exporting import parity
from efficientdet.exporting.export import calibration_input, quantize
from efficientdet.exporting.formats import open_file
from efficientdet.exporting.onnx_file import AROUND
from efficientdet.family import MODELS
from efficientdet.images.letterbox import LITE, letterbox
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.runtimes import open_openvino
from efficientdet.inference.engines.session import EndToEndEngine
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.info import CheckpointInfo

SPEC = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=128)
INFO = CheckpointInfo(SPEC, ("box",), (3,), LITE)


def make_detector(**settings: Any) -> Detector:
    torch.manual_seed(0)
    model = EfficientDet(SPEC, 1).eval()
    with torch.no_grad():  # scores of 0.01 would leave nothing to find
        model.class_head.predict.pointwise.bias.fill_(-1.0)
    return Detector(model, INFO, device="cpu", backend="eager", **settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 2)):
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels = random.integers(0, 256, (100, 128, 3), dtype=np.uint8)
            pixels[20:60, 30:90] //= 8
            Image.fromarray(pixels).save(folder / f"{split}{number}.png")
            images.append({"id": number, "file_name": f"{split}{number}.png", "width": 128, "height": 100})
            box = {"category_id": 3, "bbox": [30, 20, 60, 40], "area": 2400, "iscrowd": 0}
            annotations.append({"id": number, "image_id": number, **box})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "box"}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))


def test_calibration_images_are_what_the_file_sees(data: Path) -> None:
    record = read_split(data, "train").images[2]
    expected, _ = letterbox(read(record.path), (128, 128), LITE)
    (pixels,) = calibration_input(make_detector(), False, record)
    np.testing.assert_array_equal(pixels, expected[None])
    canvas, size = calibration_input(make_detector(), True, record)
    normalized = (canvas[0, :100].transpose(2, 0, 1) - np.float32(LITE.mean[0])) / np.float32(LITE.std[0])
    np.testing.assert_allclose(normalized, expected[:, :100], atol=1e-6)
    assert size.tolist() == [[100, 128]]


@pytest.mark.parametrize(
    ("name", "choices", "error", "message"),
    [
        ("x.onnx", {}, SettingError, r"it must be called \*.xml"),
        ("x.xml", {"calibration_images": 0}, SettingError, "calibration_images is 0; it must be at least 1"),
        ("x.xml", {"pictures": 3}, SettingError, "unknown setting 'pictures'"),
        ("x.xml", {"preset": "best"}, UnknownNameError, "performance, mixed"),
    ],
)
def test_wrong_choices_are_refused_at_once(
    data: Path, tmp_path: Path, name: str, choices: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quantize(make_detector(), data, tmp_path / name, **choices)  # type: ignore[arg-type]
    assert not (tmp_path / name).exists()


def test_without_nncf_it_says_what_to_install(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efficientdet\[export\]'"):
        quantize(make_detector(), data, tmp_path / "x.xml")


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A quantized file."""
    pytest.importorskip("nncf")
    detector, path = make_detector(), tmp_path_factory.mktemp("int8") / "net.xml"
    return SimpleNamespace(detector=detector, path=path, report=quantize(detector, data, path, calibration_images=4))


@pytest.mark.slow
def test_a_quantized_file_is_close_small_and_loads(written: SimpleNamespace, data: Path) -> None:
    path, report = written.path, written.report
    whole = sum(tensor.numel() * 4 for tensor in written.detector.model.state_dict().values())
    assert sum(part.stat().st_size for part in path.parent.iterdir()) < 0.5 * whole
    assert open_file(path, "openvino").metadata.calibration["images"] == 4  # type: ignore[index]
    assert not report.failures and report.ap is not None
    assert json.loads(json.dumps(report.to_dict()))["precision"] == "int8"
    levels = report.differences
    names = [level.output for level in levels]
    assert names == [f"{output} of P{level}" for output in ("class_logits", "box_deltas") for level in range(3, 8)]
    for level in levels:
        assert 0 < level.mean < 0.6 * level.spread  # of random weights, on one map of a single cell too
    detector = load(path)
    assert (detector.engine.precision, detector.class_names) == ("int8", INFO.class_names)
    square = detector.predict(data / "val1.png", score_threshold=0.0)
    exact = written.detector.predict(data / "val1.png", score_threshold=0.0)
    assert square.scores[0] == pytest.approx(exact.scores[0], abs=0.05)
    load(path, image_size=256, rectangular=True).predict(data / "val1.png")


@pytest.mark.slow
def test_end_to_end_the_network_alone_is_quantized(data: Path, tmp_path: Path, written: SimpleNamespace) -> None:
    detector, path = written.detector, tmp_path / "whole.xml"
    report = quantize(detector, data, path, calibration_images=4, end_to_end=True)
    assert not report.failures and [one.output for one in report.differences[-2:]] == ["boxes_xyxy", "scores"]
    model = open_openvino(path)
    rounded = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "FakeQuantize"}
    readers = {
        target.get_node().get_friendly_name()
        for node in model.get_ops() if node.get_type_name() == "FakeQuantize"
        for target in node.output(0).get_target_inputs()
    }  # fmt: skip
    assert rounded and not any(name.startswith(AROUND) for name in readers)
    whole, raw = load(path), load(written.path)
    assert isinstance(whole.engine, EndToEndEngine) and whole.engine.precision == "int8"
    for image in (data / "val1.png", data / "val2.png"):
        found, expected = (one.predict(image, score_threshold=0.3) for one in (whole, raw))
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.02)
    with pytest.raises(SettingError, match="hard"):
        quantize(make_detector(nms="soft"), data, path, end_to_end=True)


@pytest.mark.slow
def test_only_whole_files_are_left(written: SimpleNamespace) -> None:
    assert sorted(path.name for path in written.path.parent.iterdir()) == ["net.bin", "net.xml"]


@pytest.mark.slow
def test_a_size_is_free_where_it_can_be(data: Path, tmp_path: Path, written: SimpleNamespace) -> None:
    assert open_file(written.path, "openvino").metadata.dynamic_size
    detector = Detector(make_detector().model, INFO, device="cpu", backend="eager", image_size=(128, 96))
    quantize(detector, data, tmp_path / "net.xml", calibration_images=1)
    metadata = open_file(tmp_path / "net.xml", "openvino").metadata
    assert not metadata.dynamic_size and metadata.calibration["images"] == 1  # type: ignore[index]


@pytest.mark.slow
def test_level_differences_are_of_the_right_level(written: SimpleNamespace, data: Path) -> None:
    path = written.path
    other = make_detector()
    with torch.no_grad():  # P5 alone: the third norms of the class head
        other.model.class_head.bns[0][2].bias.add_(1.0)  # type: ignore[index, union-attr, operator]
    found, before = (
        parity.check_file(detector, path, "openvino", images=data, data=data).differences
        for detector in (other, written.detector)
    )
    changed = [a.output for a, b in zip(found, before, strict=True) if a.mean != b.mean]
    assert changed == ["class_logits of P5"]


@pytest.mark.slow
def test_over_the_bound_nothing_is_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setitem(parity.BOUNDS, "int8", parity.Bounds(None, -1.0))  # no difference is small enough
    detector = make_detector()
    save_checkpoint(tmp_path / "net.safetensors", detector.model.state_dict(), INFO)
    arguments = ["quantize", str(tmp_path / "net.safetensors"), "--data", str(data), "--out", str(tmp_path / "x.xml"),
                 "--calibration-images", "2"]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert "class_logits of P3" in result.output and ", network " in result.output
    assert "over the bound" in result.output and "not written" in result.output
    assert not (tmp_path / "x.xml").exists() and not (tmp_path / "x.bin").exists()


def test_the_command_prints_what_it_cost(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def stand_in(detector: Detector, data: Path, out: Path, **settings: object) -> parity.ParityReport:
        asked.clear()
        asked.update(settings, out=out, image_size=detector.image_size)
        for part, size in ((out, 400_000), (out.with_suffix(".bin"), 3_000_000)):
            part.write_bytes(bytes(size))
        return parity.ParityReport("x.xml", "int8", 1, (), 49.5, 50.0, 1.0)

    monkeypatch.setattr("efficientdet.exporting.export.quantize", stand_in)
    save_checkpoint(tmp_path / "net.safetensors", make_detector().model.state_dict(), INFO)
    arguments = ["quantize", str(tmp_path / "net.safetensors"), "--data", str(data), "--out", str(tmp_path / "x.xml")]
    result = CliRunner().invoke(app, [*arguments, "--split", "val", "--image-size", "256"])
    assert result.exit_code == 0, result.output
    for text in ("50.00", "49.50", "-0.50", "3.4 MB"):
        assert text in result.output
    assert asked == {"split": "val", "out": tmp_path / "x.xml", "image_size": (256, 256)}
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(result.output)["ap_difference"] == -0.5
    assert asked == {"out": tmp_path / "x.xml", "image_size": (128, 128)}  # the defaults are the dataclass's
