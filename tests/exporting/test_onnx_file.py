"""Raw and end-to-end ONNX files against the network and against our own post-processing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from efficientdet.errors import WeightsError
from efficientdet.exporting.end_to_end import EndToEnd
from efficientdet.exporting.export import export, make_metadata
from efficientdet.exporting.formats import OpenedFile, make_batch
from efficientdet.exporting.onnx_file import halve_weights, make_onnx, open_file
from efficientdet.exporting.settings import ExportSettings
from efficientdet.family import aspect_factors
from efficientdet.images.convert import RgbImage
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.postprocess import postprocess


@pytest.fixture(scope="module")
def raw_file(people: Detector, tmp_path_factory: pytest.TempPathFactory) -> OpenedFile:
    path = tmp_path_factory.mktemp("raw") / "people.onnx"
    report = export(people, path, dynamic_batch=True)
    assert not report.failures
    return open_file(path)


@pytest.fixture(scope="module")
def whole_file(people: Detector, tmp_path_factory: pytest.TempPathFactory) -> OpenedFile:
    path = tmp_path_factory.mktemp("whole") / "people.onnx"
    export(people, path, end_to_end=True, dynamic_batch=True, dynamic_size=True)
    return open_file(path)


@pytest.mark.parametrize("count", [1, 3])
def test_raw_outputs_are_the_networks(
    people: Detector, raw_file: OpenedFile, portrait: RgbImage, wide: RgbImage, count: int
) -> None:
    batch = make_batch([portrait, wide, wide[::-1]][:count], people.image_size, people.info.preprocessing)
    with torch.no_grad():
        expected = people.model(batch.images)
    for found, levels in zip(raw_file.raw(batch), expected, strict=True):
        wanted = torch.cat(levels, 1)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("size", [(128, 128), (256, 128), (128, 384)])
@pytest.mark.parametrize("count", [1, 3])
def test_end_to_end_is_the_detector(
    people: Detector, whole_file: OpenedFile, portrait: RgbImage, wide: RgbImage,
    size: tuple[int, int], count: int,
) -> None:  # fmt: skip
    """Boxes within 0.01 pixels, scores within 1e-5, labels and counts the same: those of the whole detector."""
    detector = Detector(people.model, people.info, device="cpu", image_size=size)
    images = [portrait, wide, wide[::-1].copy()][:count]
    batch = make_batch(images, size, detector.info.preprocessing)
    boxes, scores, labels, counts = whole_file.detect(batch)
    for i, image in enumerate(images):
        wanted = detector.predict(image, score_threshold=0.05)
        assert int(counts[i]) == len(wanted) > 0
        n = len(wanted)
        assert torch.allclose(boxes[i, :n], torch.from_numpy(wanted.boxes_xyxy), rtol=0, atol=0.01)
        assert torch.allclose(scores[i, :n], torch.from_numpy(wanted.scores), rtol=0, atol=1e-5)
        assert torch.equal(labels[i, :n], torch.from_numpy(wanted.labels))
        assert not boxes[i, n:].any() and not scores[i, n:].any() and not labels[i, n:].any()


class Certain(nn.Module):
    """A network whose scores are all 1.0 when rounded, though its logits differ."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = (torch.cat(levels, 1) for levels in self.network(images))
        return logits + 40, deltas


def test_scores_that_round_to_one_keep_the_order_of_their_logits(people: Detector, portrait: RgbImage) -> None:
    metadata = make_metadata(people, ExportSettings(end_to_end=True))
    batch = make_batch([portrait], people.image_size, people.info.preprocessing)
    network = Certain(people.model)
    with torch.no_grad():
        boxes, scores, _, _ = EndToEnd(network, metadata)(batch.canvases, batch.image_sizes)
        logits, deltas = network(batch.images)
    wanted = postprocess(
        [logits], [deltas], people.model.anchors(people.image_size), metadata.postprocess,
        scales=batch.scales, image_sizes=batch.image_sizes,
    )  # fmt: skip
    assert (scores == 1).all() and scores.shape[1] == metadata.postprocess.max_detections
    assert torch.allclose(boxes, wanted.boxes_xyxy, rtol=0, atol=0.01)
    ranks = logits[0, wanted.anchor_indices[0], 0]
    assert (ranks[1:] <= ranks[:-1]).all()


def test_the_padding_does_not_matter(people: Detector, whole_file: OpenedFile, wide: RgbImage) -> None:
    batch = make_batch([wide], (128, 128), people.info.preprocessing)
    canvas = batch.canvases.clone()
    canvas[:, int(wide.shape[0] * batch.scales[0]) :] = 200
    before, after = whole_file.detect(batch), whole_file.detect(batch._replace(canvases=canvas))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_limits_go_into_the_file(people: Detector, portrait: RgbImage, tmp_path: Path) -> None:
    detector = load("people", device="cpu", image_size=128, score_threshold=(0.0,), iou_threshold=0.8, max_detections=7,
                    max_candidates=60)  # fmt: skip
    detector._model = people._model  # so that the translated network is the one at hand
    path = tmp_path / "few.onnx"
    export(detector, path, end_to_end=True, dynamic_batch=True)
    batch = make_batch([portrait], (128, 128), detector.info.preprocessing)
    boxes, scores, _, counts = open_file(path).detect(batch)
    wanted = detector.predict(portrait)
    assert len(wanted) == int(counts[0]) == scores.shape[1] == 7
    assert torch.allclose(boxes[0], torch.from_numpy(wanted.boxes_xyxy), rtol=0, atol=0.02)
    assert torch.allclose(scores[0], torch.from_numpy(wanted.scores), rtol=0, atol=1e-5)


def test_the_file_says_what_it_is(people: Detector, raw_file: OpenedFile, whole_file: OpenedFile) -> None:
    facts = json.loads(raw_file.metadata.to_json())
    assert facts["class_names"] == ["person"]
    assert facts["category_ids"] == list(people.info.category_ids)
    assert facts["image_size"] == [128, 128]
    assert facts["preprocessing"]["mean"] == [127.0, 127.0, 127.0]
    assert facts["anchors"]["count"] == len(people.model.anchors((128, 128)))
    assert (facts["end_to_end"], facts["dynamic_batch"], facts["dynamic_size"]) == (False, True, False)
    assert FileMetadata.from_json(raw_file.metadata.to_json(), Path("x")) == raw_file.metadata
    whole = whole_file.metadata
    assert (whole.end_to_end, whole.dynamic_batch, whole.dynamic_size) == (True, True, True)
    assert whole.postprocess == people.postprocess and whole.postprocess.score_threshold == 0.05


@pytest.mark.slow
def test_other_anchors_travel_into_the_file(people: Detector, portrait: RgbImage, tmp_path: Path) -> None:
    spec = replace(people.info.spec, anchor_scale=2.0, aspects=aspect_factors((0.4, 1.0, 3.0)))
    info = replace(people.info, spec=spec)
    detector = Detector(people.model, info, device="cpu", image_size=128, score_threshold=0.05)
    export(detector, tmp_path / "other.onnx", end_to_end=True, dynamic_batch=True)
    wanted = detector.predict(portrait)
    batch = make_batch([portrait], (128, 128), info.preprocessing)
    boxes, _, _, counts = open_file(tmp_path / "other.onnx").detect(batch)
    assert int(counts[0]) == len(wanted) > 0
    assert torch.allclose(boxes[0, : len(wanted)], torch.from_numpy(wanted.boxes_xyxy), rtol=0, atol=0.02)
    usual = people.predict(portrait)
    assert abs(usual.boxes_xyxy[0] - wanted.boxes_xyxy[0]).max() > 1
    found = open_file(tmp_path / "other.onnx").metadata.checkpoint.spec
    assert (found.anchor_scale, found.aspects) == (2.0, spec.aspects)


def test_half_weights_halve_the_file(people: Detector, raw_file: OpenedFile, portrait: RgbImage) -> None:
    full, half = (
        make_onnx(people, make_metadata(people, ExportSettings(dynamic_batch=True, half=half)))
        for half in (False, True)
    )
    assert half.ByteSize() < 0.6 * full.ByteSize()
    halve_weights(full)
    assert [t.data_type for t in full.graph.initializer] == [t.data_type for t in half.graph.initializer]


def test_a_file_of_others_is_refused(tmp_path: Path, people: Detector) -> None:
    import onnx

    graph = make_onnx(people, make_metadata(people, ExportSettings(dynamic_batch=True)))
    del graph.metadata_props[:]
    onnx.save(graph, str(tmp_path / "bare.onnx"))
    with pytest.raises(WeightsError, match="has no metadata of this package"):
        open_file(tmp_path / "bare.onnx")
