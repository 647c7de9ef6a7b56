"""export, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _command_is_known() -> None:
    import efficientdet.cli.export  # noqa: F401


@pytest.mark.slow
def test_export_then_check_then_refuse(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    """A file is written and passes again later; with one weight changed it exits with 1 and names the layer."""
    import onnx
    from onnx import numpy_helper

    out = tmp_path / "tiny.onnx"
    done = command("export", checkpoint, "--out", out, "--dynamic-batch", "--end-to-end", "--score-threshold", 0.005)
    assert done.code == 0, done.err
    assert f"written: {out}" in done.out and "class_logits" in done.out
    report = json.loads(command("export", checkpoint, "--check", out, "--json").out)
    assert report["failures"] == [] and report["first_difference"] is None

    graph = onnx.load(str(out))
    name = "model.feature_network.cells.0.out4.conv.pointwise.weight"
    (tensor,) = (tensor for tensor in graph.graph.initializer if tensor.name == name)
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[0] += 1.0
    tensor.CopyFrom(numpy_helper.from_array(weights, name))
    onnx.save(graph, str(out))
    done = command("export", checkpoint, "--check", out)
    assert done.code == 1
    assert "BROKEN" in done.out
    assert "the first layer that differs: feature_network.cells.0.out4.conv.pointwise" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["people"], "give --out FILE to write one, or --check FILE"),
        (["people", "--out", "x.engine"], "trtexec --onnx=FILE.onnx"),
        (["people", "--out", "x.mlpackage"], "a Core ML file runs on macOS alone"),
        (["people", "--out", "x.pth"], "no format has the suffix '.pth'"),
        (["people", "--to", "onx", "--out", "x"], "did you mean 'onnx'"),
        (["people", "--out", "x.pt2", "--dynamic"], "these can: onnx, openvino"),
        (
            ["people", "--out", "x.onnx", "--dynamic", "--image-size", "320"],
            "image size 320x320: a file of dynamic size takes multiples of 128",
        ),
        (["nobody", "--out", "x.onnx"], "unknown weights 'nobody'"),
        (["people", "--check", "gone.onnx"], "gone.onnx: no such file"),
    ],
)
def test_export_refuses(command: Command, arguments: list[str], message: str) -> None:
    done = command("export", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_command_without_images_says_so(command: Command, tmp_path: Path) -> None:
    done = command("export", "people", "--out", tmp_path / "x.onnx", "--images", tmp_path / "none")
    assert done.code == 2
    assert "none" in done.err
    assert list(tmp_path.iterdir()) == []
