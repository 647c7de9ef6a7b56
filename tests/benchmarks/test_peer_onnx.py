"""Any detector's ONNX file, whatever its inputs are called and how they lie, runs beside a model of this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import peer_onnx
import pytest

from efficientdet.errors import WeightsError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
IMAGE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)


def write(path: Path, inputs: dict[str, tuple[str, list[Any]]]) -> Path:
    """A file that gives the mean of each of its inputs."""
    helper = onnx.helper
    nodes, outputs = [], []
    for number, name in enumerate(inputs):
        nodes += [
            helper.make_node("Cast", [name], [f"float_{number}"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceMean", [f"float_{number}"], [f"mean_{number}"], keepdims=0),
        ]
        outputs.append(helper.make_tensor_value_info(f"mean_{number}", onnx.TensorProto.FLOAT, []))
    given = [helper.make_tensor_value_info(n, getattr(onnx.TensorProto, k), s) for n, (k, s) in inputs.items()]
    graph = helper.make_graph(nodes, "peer", given, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def test_inputs_are_filled_by_type_layout_and_size(tmp_path: Path) -> None:
    inputs = {"pixels": ("UINT8", ["batch", "rows", "columns", 3]), "sizes": ("INT64", ["batch", 2])}
    peer = peer_onnx.Peer(write(tmp_path / "a.onnx", inputs), 64)
    pixels, sizes = peer.arrays(IMAGE)
    assert (pixels.shape, pixels.dtype, sizes.tolist()) == ((1, 64, 64, 3), np.uint8, [[64, 64]])
    fixed = {"images": ("FLOAT16", [1, 3, 32, 48]), "scale_factor": ("FLOAT", [1, 2])}
    pixels, scale = peer_onnx.Peer(write(tmp_path / "b.onnx", fixed), 64).arrays(IMAGE)
    assert (pixels.shape, pixels.dtype, scale.tolist()) == ((1, 3, 32, 48), np.float16, [[1, 1]])
    assert 0 <= pixels.min() < pixels.max() <= 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"tokens": ("INT64", [1, 77])}, r"one input must be an image.*tokens \[1, 77\]"),
        ({"x": ("FLOAT", [1, 3, 8, 8]), "mask": ("FLOAT", [1, 8, 8])}, r"input mask \[1, 8, 8\] is not known"),
    ],
)
def test_what_cannot_be_filled_is_named(tmp_path: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        peer_onnx.Peer(write(tmp_path / "a.onnx", inputs), 64).arrays(IMAGE)


def test_both_sides_run_each_round(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "peer.onnx", {"images": ("FLOAT", [1, 3, 32, 32])})
    peer_onnx.main([str(file), "--weights", str(checkpoint), "--rounds", "3"])
    printed = capsys.readouterr().out
    for side in (f"{checkpoint}, eager fp32 on cpu, 64x64", "peer.onnx, onnxruntime, 32x32"):
        assert re.search(rf"^{re.escape(side)}: [\d.]+ \([\d.]+-[\d.]+\) ms$", printed, re.MULTILINE), printed
    assert re.search(r"^peer.onnx, \w+ : .*eager fp32 on cpu: [\d.]+ ", printed, re.MULTILINE)
    assert "threads on each side" in printed
