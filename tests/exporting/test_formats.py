"""OpenVINO and torch.export files: the same outputs and detections as the network, and the same gate."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from efficientdet.errors import MissingExtraError, WeightsError
from efficientdet.exporting.export import export
from efficientdet.exporting.formats import open_file
from efficientdet.exporting.parity import check_file
from efficientdet.images.convert import RgbImage
from efficientdet.inference.detector import Detector, load

KINDS = [("openvino", ".xml"), pytest.param("torch-export", ".pt2", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("to", "suffix"), KINDS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("end_to_end", [False, True])
def test_the_file_is_the_network(
    people: Detector, tmp_path: Path, to: str, suffix: str, half: bool, end_to_end: bool
) -> None:
    path = tmp_path / f"people{suffix}"
    report = export(people, path, end_to_end=end_to_end, dynamic_batch=True, half=half)
    assert report.precision == ("fp16" if half else "fp32")
    assert len(report.differences) == (12 if end_to_end else 10)
    if half:
        size = sum(part.stat().st_size for part in tmp_path.iterdir())
        assert size < 0.75 * 4 * sum(p.numel() for p in people.model.parameters())
        assert report.differences[0].maximum > 1e-4  # the weights were rounded indeed
    metadata = open_file(path, to).metadata
    assert metadata.checkpoint.class_names == ("person",)
    assert (metadata.end_to_end, metadata.precision) == (end_to_end, report.precision)


@pytest.mark.parametrize(("to", "suffix"), KINDS)
def test_a_file_of_another_network_fails_where_it_differs(
    people: Detector, tmp_path: Path, to: str, suffix: str
) -> None:
    """The detector's weight is changed behind the file's back: the two differ from that layer on."""
    path = tmp_path / f"people{suffix}"
    export(people, path, dynamic_batch=True)
    changed = load("people", device="cpu", image_size=128)
    with torch.no_grad():
        layer = changed.model.get_submodule("feature_network.cells.1.out4.conv.pointwise")
        assert isinstance(layer, nn.Conv2d)
        layer.weight[0, 0] += 0.5
    report = check_file(changed, path, to)
    assert report.failures
    assert report.first_difference == "feature_network.cells.1.out4.conv.pointwise"


def test_openvino_takes_any_size(people: Detector, tmp_path: Path) -> None:
    path = tmp_path / "people.xml"
    report = export(people, path, end_to_end=True, dynamic_batch=True, dynamic_size=True)  # the gate tries another one
    assert not report.failures


@pytest.mark.parametrize(
    ("to", "suffix", "module", "message"),
    [
        ("onnx", ".onnx", "onnx", r"onnx is not installed; run: pip install 'efficientdet\[export\]'"),
        ("openvino", ".xml", "openvino", r"openvino is not installed; run: pip install 'efficientdet\[export\]'"),
        (
            "executorch",
            ".pte",
            "executorch.exir",
            r"executorch is not installed; run: pip install 'efficientdet\[executorch\]'",
        ),
        (
            "tflite",
            ".tflite",
            "litert_torch",
            r"litert_torch is not installed; run: pip install 'efficientdet\[tflite\]'",
        ),
    ],
)
def test_a_missing_library_is_named(
    people: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, suffix: str, module: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=message):
        export(people, tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"no archive")
    with pytest.raises(WeightsError, match=r"bad\.pt2: not a torch\.export file"):
        open_file(tmp_path / "bad.pt2", "torch-export")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_damaged_file_is_never_loaded(people: Detector, tmp_path: Path, portrait: RgbImage, suffix: str) -> None:
    """One bit is enough, in the weights too: they would give other detections, and no error."""
    path = tmp_path / f"people{suffix}"
    export(people, path)
    assert len(load(path, score_threshold=0.05).predict(portrait))
    for part in tmp_path.iterdir():
        content = part.read_bytes()
        for place in range(0, len(content), len(content) // 7):
            part.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(WeightsError, match="does not match its checksum"):
                load(path)
        part.write_bytes(content[: len(content) // 2])
        with pytest.raises(WeightsError, match=str(path)):
            load(path)
        part.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("end_to_end", [False, True])
@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("torch-export", ".pt2")])
def test_cells_at_their_own_size(tmp_path: Path, to: str, suffix: str, end_to_end: bool, shared_data: Path) -> None:
    """Many small objects of three classes in real images, with boxes in the hundreds."""
    detector = load("cells", device="cpu", score_threshold=(0.05, 0.2, 0.4))
    report = export(
        detector, tmp_path / f"cells{suffix}", end_to_end=end_to_end, dynamic_batch=True,
        images=shared_data / "cells" / "images",
    )  # fmt: skip
    assert report.images > 10
    assert np.isfinite([d.maximum for d in report.differences]).all()
