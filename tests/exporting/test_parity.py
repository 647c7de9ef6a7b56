"""The gate: good files pass it; a wrong weight, a wrong threshold, a wrong AP do not, and it says where."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientdet.boxes import pairwise_iou
from efficientdet.data.read_split import read_split
from efficientdet.errors import SettingError, WeightsError
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.exporting import parity
from efficientdet.exporting.export import export
from efficientdet.exporting.formats import Batch, OpenedFile, comparison_images, open_file
from efficientdet.exporting.parity import Difference, ParityError, ParityReport, check_file
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.postprocess import postprocess


@pytest.fixture(scope="module")
def file(people: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file: end-to-end, any batch, any size."""
    path = tmp_path_factory.mktemp("file") / "people.onnx"
    export(people, path, end_to_end=True, dynamic_batch=True, dynamic_size=True)
    return path


def change(file: Path, out: Path, name: str, how: Callable[[Any], Any]) -> Path:
    """A copy of an ONNX file with a constant changed, and those that are copies of it for other levels."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file))
    tensors = [tensor for tensor in graph.graph.initializer if tensor.name.partition("@")[0] == name]
    assert tensors
    for tensor in tensors:
        tensor.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(tensor).copy()), tensor.name))
    onnx.save(graph, str(out))
    return out


def one_more(weights: Any) -> Any:
    weights.flat[3] += 0.5
    return weights


def test_a_good_file_passes(people: Detector, file: Path) -> None:
    report = check_file(people, file, "onnx")
    assert report.failures == [] and report.first_difference is None
    raw = [f"{output} of P{level}" for output in ("class_logits", "box_deltas") for level in range(3, 8)]
    assert [d.output for d in report.differences] == [*raw, "boxes_xyxy", "scores"]
    assert all(0 <= d.mean <= d.maximum < math.inf for d in report.differences)
    assert report.differences[0].maximum > 0  # two implementations that agree to the last digit are one
    assert json.loads(json.dumps(report.to_dict()))["failures"] == []


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("model.backbone.blocks.2.0.conv_dw.weight", "backbone.blocks.2.0.conv_dw"),
        ("model.feature_network.cells.1.td5.conv.pointwise.weight", "feature_network.cells.1.td5.conv.pointwise"),
        ("model.box_head.bns.1.2.weight", "box_head.bns.1.2"),
        ("model.class_head.predict.pointwise.weight", "class_head.predict.pointwise (on P3)"),
    ],
)
def test_one_wrong_weight_is_found(people: Detector, file: Path, tmp_path: Path, weight: str, layer: str) -> None:
    report = check_file(people, change(file, tmp_path / "bad.onnx", weight, one_more), "onnx")
    assert report.first_difference == layer
    assert "over the bound of" in report.failures[0]


def test_numbers_that_are_none_break_the_bound(people: Detector, file: Path, tmp_path: Path) -> None:
    bad = change(file, tmp_path / "bad.onnx", "model.backbone.conv_stem.weight", lambda x: x * np.float32(np.nan))
    report = check_file(people, bad, "onnx")
    assert report.first_difference == "backbone.conv_stem"
    assert report.differences[0].maximum == math.inf


def test_wrong_nms_is_told_from_a_wrong_network(people: Detector, file: Path, tmp_path: Path) -> None:
    import onnx

    (nms,) = (node for node in onnx.load(str(file)).graph.node if node.op_type == "NonMaxSuppression")
    bad = change(file, tmp_path / "bad.onnx", nms.input[3], lambda x: np.full_like(x, 0.95))
    report = check_file(people, bad, "onnx")
    assert report.first_difference == "decoding and NMS (the network's own outputs agree)"
    assert all(d.is_kept for d in report.differences[:10])


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_of_two_equal_scores_either_may_win(people: Detector, file: Path, moved: float) -> None:
    """int8 has many, and each suppresses the other; a box that is neither of the two is still found."""
    anchors = people.model.anchors(people.image_size).cpu()
    same = ((anchors - anchors[300]).abs().sum(1) > 0) & (pairwise_iou(anchors[300:301], anchors)[0] > 0.6)
    other = int(same.nonzero()[0])
    logits, deltas = torch.full((1, len(anchors), 1), -20.0), torch.zeros(1, len(anchors), 4)
    logits[:, [300, other]] = 2.0

    class Tied(OpenedFile):
        def raw(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return logits, deltas

        def detect(self, batch: Batch) -> list[torch.Tensor]:
            boxes, scores, labels, counts, _ = postprocess(
                [logits.flip(1)], [deltas.flip(1)], anchors.flip(0), self.metadata.postprocess, scales=batch.scales,
                image_sizes=batch.image_sizes,
            )  # fmt: skip
            assert counts.tolist() == [1]
            return [boxes + moved, scores, labels, counts]

    opened = Tied(dataclasses.replace(open_file(file, "onnx").metadata, dynamic_size=False, dynamic_batch=False), list)
    images = [np.full((*people.image_size, 3), 90, np.uint8)]
    *_, boxes, scores = parity._compare(opened, people, images, parity.BOUNDS["int8"])[0]
    assert boxes.output == "boxes_xyxy" and scores.is_kept
    assert boxes.maximum == pytest.approx(moved, abs=1e-4) and boxes.is_kept == (moved == 0)


def test_a_file_of_another_detector_is_refused(people: Detector, file: Path) -> None:
    with pytest.raises(WeightsError, match=r"its image size \[128, 128\] are not the detector's \[640, 640\]"):
        check_file(load("people", device="cpu"), file, "onnx")
    with pytest.raises(WeightsError, match="its classes"):
        check_file(load("cells", device="cpu", image_size=128), file, "onnx")
    with pytest.raises(WeightsError, match="no such file"):
        check_file(people, file.with_name("none.onnx"), "onnx")


def test_int8_is_not_passed_unseen(people: Detector, file: Path, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(str(file))
    facts = {**json.loads(graph.metadata_props[0].value), "precision": "int8"}
    graph.metadata_props[0].value = json.dumps(facts)
    onnx.save(graph, str(tmp_path / "int8.onnx"))
    with pytest.raises(SettingError, match="a file of int8 is judged by AP alone; give a dataset"):
        check_file(people, tmp_path / "int8.onnx", "onnx")


def test_a_file_that_fails_is_not_written(people: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.BOUNDS, "fp32", parity.Bounds(1e-12, 0.1))
    path = tmp_path / "strict.onnx"
    path.write_text("what was there before")
    with pytest.raises(
        ParityError, match=r"strict\.onnx: class_logits of P3 differs .*; the first layer that differs: \w"
    ) as caught:
        export(people, path, dynamic_batch=True)
    assert caught.value.report.failures
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_ap_of_both_is_compared(people: Detector, file: Path, shared_data: Path, tmp_path: Path) -> None:
    """On the first pictures of a real data set; a file that finds nothing loses all of it."""
    pytest.importorskip("faster_coco_eval")
    records = read_split(shared_data / "people", "val")
    few = dataclasses.replace(records, images=records.images[:6])
    report = check_file(people, file, "onnx", data=few)
    assert report.reference_ap is not None and report.reference_ap > 1
    assert report.reference_ap == pytest.approx(100 * evaluate(people, few).ap, abs=0.05)
    assert report.ap_difference is not None and abs(report.ap_difference) <= 0.1
    assert report.failures == []

    blind = change(file, tmp_path / "blind.onnx", "model.class_head.predict.pointwise.bias", lambda x: x - 20)
    report = check_file(people, blind, "onnx", data=few)
    assert report.ap == 0
    assert any("AP differs" in failure for failure in report.failures)


def test_ap_of_an_openvino_file(people: Detector, shared_data: Path, tmp_path: Path) -> None:
    """Its outputs hold until the next image alone."""
    pytest.importorskip("faster_coco_eval")
    records = read_split(shared_data / "people", "val")
    few = dataclasses.replace(records, images=records.images[:6])
    report = export(people, tmp_path / "people.xml", dynamic_batch=True, data=few)
    assert report.ap is not None and report.ap > 1


def test_ap_over_the_bound_fails() -> None:
    kept = Difference("class_logits of P3", 1e-6, 1e-7, 1.0, 1e-4)
    within = ParityReport("x", "int8", 2, (kept,), 40.2, 41.1, 1.0)
    over = ParityReport("x", "int8", 2, (kept,), 40.0, 41.1, 1.0)
    won = ParityReport("x", "int8", 2, (kept,), 42.2, 41.1, 1.0)
    assert within.failures == []
    assert over.failures == ["AP differs by -1.10 points, over the bound of 1.0"]
    assert won.failures  # no file is better than its network: something else was evaluated


def test_images_come_from_a_folder_too(tmp_path: Path, portrait: Any) -> None:
    from PIL import Image

    for number in range(20):
        Image.fromarray(portrait[: 100 + number]).save(tmp_path / f"{number:02}.png")
    heights = [image.shape[0] for image in comparison_images(tmp_path)]
    assert heights == [100 + 20 * i // 16 for i in range(16)]  # at most sixteen, evenly spread
    assert len(comparison_images(None)) == 2  # the portrait and its mirror image
