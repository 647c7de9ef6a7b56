"""`efficientdet benchmark --layers` finds every convolution of the network in what each runtime ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from efficientdet.cli import app
from efficientdet.errors import SettingError
from efficientdet.inference.hardware import Hardware
from efficientdet.inference.layers import GROUPS, LayerTimes, _described, _Ran, time_layers
from efficientdet.inference.settings import BenchmarkSettings
from efficientdet.network.count import count

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
BACKENDS = ("openvino", "onnxruntime")


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """What the command prints, and the JSON that it writes."""
    out = tmp_path_factory.mktemp("layers") / "layers.json"
    command = ["benchmark", str(checkpoint), "--layers", "--backends", ",".join(BACKENDS), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--rounds", "1", "--iterations", "2", "--threads", "1"])
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_multiply_add_of_the_network_is_found_in_each_runtime(run: tuple[str, Any], shapes: Any) -> None:
    parts = {"backbone.conv_stem", "feature_network.cells.0", "class_head", "box_head"}
    parts |= {f"backbone.blocks.{number}" for number in range(7)}
    for times, backend in zip(run[1], BACKENDS, strict=True):
        assert times["engine"] == f"{backend} fp32" and times["input_size"] == [64, 64]
        layers = times["layers"]
        assert sum(layer["multiply_adds"] for layer in layers) == count(shapes.LITE, 2)[1]
        assert parts <= {layer["part"] for layer in layers}
        assert {"pointwise", "depthwise 3x3", "depthwise 5x5", "convolution 3x3"} <= {layer["kind"] for layer in layers}
        stem = next(layer for layer in layers if layer["module"] == "backbone.conv_stem" and layer["multiply_adds"])
        assert (stem["kind"], stem["map"], stem["channels"]) == ("convolution 3x3", "32x32", 32)
        for layer in layers:
            floor = max(layer["arithmetic_ms"], layer["memory_ms"])
            assert layer["ms"] > 0 and layer["over_floor"] == pytest.approx(layer["ms"] / floor)


@pytest.mark.slow
def test_each_sum_holds_all_layers_once(run: tuple[str, Any]) -> None:
    for times in run[1]:
        for group in GROUPS:
            *rows, whole = times["sums"][group]
            assert whole[group] == "all" and whole["layers"] == len(times["layers"])
            assert sum(row["layers"] for row in rows) == whole["layers"]
            assert sum(row["ms"] for row in rows) == pytest.approx(whole["ms"])
            assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)


@pytest.mark.slow
def test_the_command_prints_a_table_for_each_sum_and_one_of_the_slowest_layers(run: tuple[str, Any]) -> None:
    printed = " ".join(run[0].split())
    for backend in BACKENDS:
        for group in (*GROUPS, "layer"):
            assert f"{backend} fp32, 64x64, ms by {group}" in printed
    assert "x floor" in printed and "cores" in printed


def test_a_layer_that_the_runtime_adds_counts_to_the_module_before_it() -> None:
    modules = {"conv": "backbone.blocks.1.0.conv_dw", "add": "class_head.bns.0.3"}
    ran = [
        _Ran(["reorder"], "Reorder", (1, 3, 8, 8), [], [], 384, 0.1),
        _Ran(["Multiply_1", "conv", "add"], "Convolution", (1, 96, 4, 2), [(96, 1, 1, 3, 3)], [(4, 2)], 2000, 2.0),
        _Ran(["token"], "ReorderOutput", (1, 4, 2, 96), [], [], 1536, 0.5),
        _Ran(["add"], "Add", (1, 5, 4, 4), [], [], 160, 0.5),
    ]
    first, conv, reorder, add = _described(ran, modules, "fp32", {"fp32": 1000.0, "copy": 100.0})
    assert (first.part, first.map, first.arithmetic_ms) == ("input", "-", 0)
    assert (conv.part, conv.kind, conv.map) == ("backbone.blocks.1", "depthwise 3x3", "4x2")
    assert conv.multiply_adds == 96 * 9 * 8 and conv.arithmetic_ms == pytest.approx(96 * 9 * 8 * 1e-6)
    assert conv.memory_ms == pytest.approx(100 * 4 * 2000 / 1e9)
    assert (reorder.module, reorder.kind, reorder.map) == (conv.module, "ReorderOutput", "4x2")
    assert (add.part, add.map, add.channels) == ("class_head", "4x4", 5)
    weights = [(96, 16, 1, 1), (96, 1, 1, 3, 3)]
    fused = _Ran(["conv"], "Convolution", (1, 96, 4, 2), weights, [(8, 4), (4, 2)], 2000, 2.0)
    (both,) = _described([fused], modules, "fp32", {"fp32": 1000.0, "copy": 100.0})
    assert both.kind == "pointwise + depthwise 3x3" and both.multiply_adds == 96 * (16 * 32 + 9 * 8)
    times = LayerTimes("d0", "openvino fp32", (8, 8), Hardware.read(), [first, conv, reorder, add])
    rows = [(row["part"], row["layers"], row["ms"]) for row in times.sums("part")]
    assert rows == [
        ("backbone.blocks.1", 2, 2.5),
        ("class_head", 1, 0.5),
        ("input", 1, 0.1),
        ("all", 4, pytest.approx(3.1)),
    ]


def test_who_tells_no_times_of_layers_is_named(checkpoint: Path) -> None:
    with pytest.raises(SettingError, match="eager tells no times of its layers; these do: openvino, onnxruntime"):
        time_layers([str(checkpoint)], BenchmarkSettings(backends=("eager",)))
