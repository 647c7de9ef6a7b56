"""Exported files as detectors: what their metadata say is what `load` gives, and what is not ours is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientdet.errors import SettingError, UnknownNameError, WeightsError
from efficientdet.family import MODELS
from efficientdet.images.letterbox import LITE, letterbox
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.metadata import (
    CHECKSUM,
    DETECTION_OUTPUTS,
    NO_CHECKSUM,
    RAW_OUTPUTS,
    add_checksum,
)
from efficientdet.network.anchors import make_anchors
from efficientdet.weights.info import METADATA_KEY, CheckpointInfo

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

SPEC = dataclasses.replace(MODELS["lite0"], levels=(3, 4), image_size=64)
INFO = CheckpointInfo(SPEC, ("cat", "dog"), (7, 3), LITE, {"iou_threshold": 0.4})
STEP = SPEC.strides[-1]


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": json.loads(INFO.to_json()), "image_size": [64, 64], "end_to_end": False,
        "dynamic_size": False, "dynamic_batch": False, "precision": "fp32", "postprocess": {"iou_threshold": 0.4},
        **changes, "checksum": (CHECKSUM + NO_CHECKSUM).decode(),
    }  # fmt: skip


def write_stand_in(path: Path, metadata: dict[str, Any] | str | None, size: tuple[Any, Any] = (64, 64)) -> Path:
    """A file that looks like a network's: an anchor's dog logit is the mean of its cell, its box the anchor itself."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, names = [], []
    per_cell = SPEC.anchors_per_cell
    for stride in SPEC.strides:
        name = f"cells{stride}"
        nodes.append(
            helper.make_node("AveragePool", ["gray"], [name], kernel_shape=[stride, stride], strides=[stride, stride])
        )
        nodes.append(helper.make_node("Concat", [name] * per_cell, [f"{name}.all"], axis=1))
        nodes.append(helper.make_node("Transpose", [f"{name}.all"], [f"{name}.last"], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node("Reshape", [f"{name}.last", "flat"], [f"{name}.flat"]))
        names.append(f"{name}.flat")
    nodes = [
        helper.make_node("ReduceMean", ["images", "channel"], ["gray"], keepdims=1),
        *nodes,
        helper.make_node("Concat", names, ["dog"], axis=1),
        helper.make_node("Sub", ["dog", "ten"], ["cat"]),
        helper.make_node("Concat", ["cat", "dog"], ["class_logits"], axis=2),
        helper.make_node("Sub", ["dog", "dog"], ["zero"]),
        helper.make_node("Concat", ["zero"] * 4, ["box_deltas"], axis=2),
    ]
    outputs = RAW_OUTPUTS
    if isinstance(metadata, dict) and metadata["end_to_end"]:
        outputs = DETECTION_OUTPUTS
        nodes += [helper.make_node("Identity", ["dog"], [name]) for name in outputs]
    constants = {"channel": np.array([1]), "flat": np.array([0, -1, 1]), "ten": np.array(10.0, np.float32)}
    graph = helper.make_graph(
        nodes, "stand-in",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(model, {METADATA_KEY: text})
    source = path.with_suffix(".onnx")
    onnx.save(model, str(source))
    if path.suffix == ".xml":
        converted = openvino.convert_model(str(source))
        if metadata is not None:
            converted.set_rt_info(text, METADATA_KEY)
        openvino.save_model(converted, str(path), compress_to_fp16=False)
        source.unlink()
    if CHECKSUM in path.read_bytes():
        add_checksum(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SUFFIXES = pytest.mark.parametrize("suffix", [".onnx", ".xml"])


@SUFFIXES
def test_a_file_says_itself_what_it_is(tmp_path: Path, suffix: str) -> None:
    detector = load(write_stand_in(tmp_path / f"net{suffix}", facts()))
    assert dataclasses.replace(detector.info, postprocess=INFO.postprocess) == INFO
    assert (detector.class_names, detector.image_size) == (("cat", "dog"), (64, 64))
    assert detector.postprocess.iou_threshold == 0.4
    backend = "onnxruntime" if suffix == ".onnx" else "openvino"
    assert str(detector.engine) == f"{backend} fp32 on cpu"
    with pytest.raises(SettingError, match="load its checkpoint"):
        detector.model  # noqa: B018


def test_the_settings_that_a_file_was_exported_with_hold(tmp_path: Path) -> None:
    """Field default, the file's over it, typed over that."""
    path = write_stand_in(tmp_path / "net.onnx", facts(postprocess={"iou_threshold": 0.7, "max_candidates": 60}))
    settings = load(path, max_candidates=50).postprocess
    assert (settings.score_threshold, settings.iou_threshold, settings.max_candidates) == (0.3, 0.7, 50)


@SUFFIXES
def test_it_detects_what_its_outputs_say(tmp_path: Path, suffix: str) -> None:
    detector = load(write_stand_in(tmp_path / f"net{suffix}", facts()))
    image = picture(50, 64)
    found = detector.predict(image, score_threshold=0.0, max_detections=1)
    pixels, _ = letterbox(image, (64, 64), LITE)
    gray = pixels.mean(0)
    fine = gray.reshape(8, 8, 8, 8).mean((1, 3))
    coarse = gray.reshape(4, 16, 4, 16).mean((1, 3))
    best = max(fine.max(), coarse.max())
    assert found.class_names[found.labels[0]] == "dog"
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-best)), abs=1e-5)
    cell = int(fine.argmax()) if fine.max() > coarse.max() else 64 + int(coarse.argmax())
    anchors = make_anchors(SPEC, (64, 64)).reshape(-1, SPEC.anchors_per_cell, 4)[cell]
    clipped = torch.stack([anchors[:, 0::2].clamp(0, 50), anchors[:, 1::2].clamp(0, 64)], 2).flatten(1)
    assert min(float((clipped - torch.from_numpy(found.boxes_xyxy[0])).abs().max(1).values.min()), 9) < 1e-3


@SUFFIXES
def test_a_list_and_threads_give_the_same(tmp_path: Path, suffix: str) -> None:
    detector = load(write_stand_in(tmp_path / f"net{suffix}", facts()), score_threshold=0.0)
    images = [picture(64, 40, 1), picture(30, 64, 2), picture(64, 64, 3)]
    alone = [detector.predict(image).scores for image in images]
    for together, scores in zip(detector.predict(images), alone, strict=True):
        np.testing.assert_array_equal(together.scores, scores)
    results: dict[int, np.ndarray] = {}

    def work(place: int) -> None:
        results[place] = detector.predict(images[place % 3]).scores

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(6):
        np.testing.assert_array_equal(results[place], alone[place % 3])


@SUFFIXES
def test_a_fixed_size_is_fixed(tmp_path: Path, suffix: str) -> None:
    path = write_stand_in(tmp_path / f"net{suffix}", facts())
    assert load(path, image_size=64).image_size == (64, 64)
    for setting in ({"image_size": 96}, {"rectangular": True}):
        with pytest.raises(SettingError, match="64x64 pixels only"):
            load(path, **setting)  # type: ignore[arg-type]


@SUFFIXES
def test_a_dynamic_size_is_free_in_steps(tmp_path: Path, suffix: str) -> None:
    path = write_stand_in(tmp_path / f"net{suffix}", facts(dynamic_size=True), ("height", "width"))
    with pytest.raises(SettingError, match=f"multiples of {STEP}"):
        load(path, image_size=100)
    rectangular = load(path, rectangular=True, score_threshold=0.0)
    square = load(path, score_threshold=0.0)
    image = picture(64, 30)
    assert rectangular.predict(image).scores[0] == square.predict(image).scores[0]
    shapes: list[tuple[int, ...]] = []
    run = rectangular.engine.run
    rectangular._engine = dataclasses.replace(rectangular.engine, run=lambda x: shapes.append(tuple(x.shape)) or run(x))
    rectangular.predict(image)
    assert shapes == [(1, 3, 32, 64)]


def test_an_onnx_file_runs_in_openvino_too(tmp_path: Path) -> None:
    path = write_stand_in(tmp_path / "net.onnx", facts())
    other = load(path, backend="openvino", score_threshold=0.0)
    assert other.engine.backend == "openvino"
    image = picture(64, 50)
    np.testing.assert_allclose(
        other.predict(image).scores, load(path, score_threshold=0.0).predict(image).scores, atol=1e-5
    )


@SUFFIXES
def test_int8_is_said(tmp_path: Path, suffix: str) -> None:
    assert load(write_stand_in(tmp_path / f"net{suffix}", facts(precision="int8"))).engine.precision == "int8"


@SUFFIXES
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "has no metadata of this package"),
        ("{", "damaged metadata"),
        ({"end_to_end": False, "checksum": (CHECKSUM + NO_CHECKSUM).decode()}, "damaged metadata .*image_size"),
        (facts(checkpoint={"format": "efficientdet-1"}), "damaged metadata"),
    ],
)
def test_files_that_are_not_ours_are_refused(
    tmp_path: Path, suffix: str, metadata: dict[str, Any] | str | None, message: str
) -> None:
    path = write_stand_in(tmp_path / f"net{suffix}", metadata)
    with pytest.raises(WeightsError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@SUFFIXES
@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": [64]}, {"image_size": "64x64"}, {"image_size": [0, 64]}, {"image_size": [10**400, 64]},
        {"image_size": [1e308, 64]}, {"image_size": [float("inf"), 64]}, {"image_size": [100_000, 100_000]},
        {"checkpoint": []}, {"checkpoint": "x"}, {"postprocess": [1]}, {"postprocess": {"nms": "no"}},
    ],
)  # fmt: skip
def test_damaged_metadata_are_an_error_of_the_file(tmp_path: Path, suffix: str, changes: dict[str, Any]) -> None:
    path = write_stand_in(tmp_path / f"net{suffix}", facts(**changes))
    with pytest.raises(WeightsError, match=rf"net\{suffix}: damaged metadata"):
        load(path)


@SUFFIXES
def test_outputs_that_contradict_the_metadata_are_an_error_of_the_file(tmp_path: Path, suffix: str) -> None:
    checkpoint = facts()["checkpoint"]
    three = {**checkpoint, "class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}
    coarse = {**checkpoint, "spec": {**checkpoint["spec"], "levels": [3, 5]}}
    for changed in (three, coarse):
        path = write_stand_in(tmp_path / f"net{suffix}", facts(checkpoint=changed))
        with pytest.raises(WeightsError, match=rf"net\{suffix}: damaged: its outputs have shapes .*by its metadata"):
            load(path).predict(picture(64, 64))


def test_a_file_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    path = write_stand_in(tmp_path / "net.onnx", facts(image_size=[32, 32]))  # its input takes 64 x 64 alone
    with pytest.raises(WeightsError, match=r"net\.onnx: cannot be run, so it may be damaged"):
        load(path).predict(picture(32, 32))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = write_stand_in(tmp_path / f"net{suffix}", facts())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(WeightsError, match="damaged"):
        load(path)
    with pytest.raises(WeightsError, match="no such"):
        load(tmp_path / f"gone{suffix}")


def test_an_xml_without_its_bin_is_refused(tmp_path: Path) -> None:
    path = write_stand_in(tmp_path / "net.xml", facts())
    alone = shutil.copy(path, tmp_path / "alone.xml")
    with pytest.raises(WeightsError, match=r"its \.bin beside it"):
        load(alone)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"backend": "tensorrt"}, UnknownNameError),
        ({"device": "meta"}, SettingError),
        ({"precision": "bf16"}, SettingError),
    ],
)
def test_what_cannot_run_a_file_is_refused(tmp_path: Path, setting: dict[str, str], error: type[Exception]) -> None:
    path = write_stand_in(tmp_path / "net.onnx", facts())
    with pytest.raises(error):
        load(path, **setting)  # type: ignore[arg-type]


def test_a_detector_needs_something_that_runs() -> None:
    with pytest.raises(SettingError, match="model, or an engine"):
        Detector(None, INFO)


def test_evaluate_takes_a_file(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    from PIL import Image

    from efficientdet.evaluation.evaluate import evaluate

    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, 16:32] = 255  # the cell of stride 16 whose first anchor is the box below
    Image.fromarray(image).save(tmp_path / "a.png")
    records = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 48, 48], "area": 2304, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(records))
    path = write_stand_in(tmp_path / "net.xml", facts())
    # The anchors of the bright cells come first: without suppression the box is among them.
    assert evaluate(path, tmp_path / "val.json", iou_threshold=1.0).ar100 == 1.0
    assert evaluate(path, tmp_path / "val.json", iou_threshold=1.0, max_detections=1).ar100 < 1.0
