"""The programs of examples/ as real processes, on real files, with this package (and torch) out of reach."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientdet.exporting.end_to_end import EndToEnd
from efficientdet.exporting.export import export, make_metadata
from efficientdet.exporting.settings import ExportSettings
from efficientdet.family import MODELS
from efficientdet.images.find import sample_image
from efficientdet.images.letterbox import LITE
from efficientdet.inference.detector import Detector
from efficientdet.inference.postprocess import postprocess
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.info import CheckpointInfo

EXAMPLES = Path(__file__).parents[2] / "examples"
# Runs the program, then says which of the modules in question it had loaded.
BARRED = """
import runpy, sys
for name in {barred!r}:
    sys.modules[name] = None
sys.argv = {argv!r}
sys.path.insert(0, {folder!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(program: str, file: Path, barred: tuple[str, ...]) -> list[dict[str, Any]]:
    """What an example prints of the sample image."""
    argv = [str(EXAMPLES / program), str(file), str(sample_image())]
    code = BARRED.format(barred=barred, argv=argv, folder=str(EXAMPLES))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_example(detector: Detector, found: list[dict[str, Any]]) -> None:
    """Boxes within 0.01 pixels of the detector's, scores within 1e-4."""
    wanted = detector.predict(sample_image())
    assert len(found) == len(wanted) > 0
    assert [line["class"] for line in found] == [wanted.class_names[label] for label in wanted.labels]
    assert np.allclose([line["box_xyxy"] for line in found], wanted.boxes_xyxy, rtol=0, atol=0.01)
    assert np.allclose([line["score"] for line in found], wanted.scores, rtol=0, atol=1e-4)


def test_thresholds_by_class_are_in_the_metadata_and_used() -> None:
    """Of the same raw outputs this package, an end-to-end graph and the example keep the same detections."""
    spec = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=128)
    info = CheckpointInfo(spec, ("cat", "dog"), (1, 2), LITE)
    detector = Detector(EfficientDet(spec, 2), info, score_threshold=(0.6, 0.9), max_candidates=200)
    metadata = make_metadata(detector, ExportSettings(end_to_end=True))
    anchors = detector.model.anchors((128, 128))
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, len(anchors), 2, generator=random) - 1
    deltas = 0.1 * torch.randn(1, len(anchors), 4, generator=random)
    size = torch.tensor([[128, 128]])
    expected = postprocess([logits], [deltas], anchors, detector.postprocess, image_sizes=size)
    count = int(expected.counts[0])
    labels = expected.labels[0, :count].tolist()
    assert set(labels) == {0, 1}
    pairs = list(zip(expected.scores[0, :count].tolist(), labels, strict=True))
    cat, dog = (min(score for score, own in pairs if own == label) for label in (0, 1))
    assert 0.6 <= cat < 0.9 <= dog
    graph = EndToEnd(Canned(logits, deltas), metadata).eval()
    _, scores, found, counts = graph(torch.zeros(1, 128, 128, 3, dtype=torch.uint8), size)
    assert int(counts[0]) == count and found[0, :count].tolist() == labels
    assert torch.allclose(scores[0, :count], expected.scores[0, :count])
    module = importlib.util.spec_from_file_location("raw_outputs", EXAMPLES / "raw_outputs.py")
    assert module is not None and module.loader is not None
    example = importlib.util.module_from_spec(module)
    module.loader.exec_module(example)
    lines = example.find_objects(logits[0].numpy(), deltas[0].numpy(), json.loads(metadata.to_json()), (128, 128))
    assert [line["class"] for line in lines] == [info.class_names[label] for label in labels]
    assert [line["score"] for line in lines] == pytest.approx(expected.scores[0, :count].tolist(), abs=1e-5)


class Canned(torch.nn.Module):
    """A network that always gives the same outputs."""

    def __init__(self, *outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.outputs


def test_onnxruntime(people: Detector, tmp_path: Path) -> None:
    export(people, tmp_path / "people.onnx", end_to_end=True, dynamic_batch=True)
    found = run_example("onnxruntime_detect.py", tmp_path / "people.onnx", ("efficientdet", "torch", "onnx"))
    check_example(people, found)


def test_openvino(people: Detector, tmp_path: Path) -> None:
    export(people, tmp_path / "people.xml", end_to_end=True, dynamic_batch=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["people.bin", "people.xml"]
    found = run_example("openvino_detect.py", tmp_path / "people.xml", ("efficientdet", "torch", "onnx"))
    check_example(people, found)


@pytest.mark.slow
def test_torch_export(people: Detector, tmp_path: Path) -> None:
    export(people, tmp_path / "people.pt2", end_to_end=True)
    check_example(people, run_example("torch_export_detect.py", tmp_path / "people.pt2", ("efficientdet",)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of executorch's own code
def test_executorch(people: Detector, tmp_path: Path) -> None:
    pytest.importorskip("executorch.runtime")
    export(people, tmp_path / "people.pte")
    check_example(people, run_example("executorch_detect.py", tmp_path / "people.pte", ("efficientdet",)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of litert's own code
def test_tflite(people: Detector, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    export(people, tmp_path / "people.tflite")
    check_example(people, run_example("tflite_detect.py", tmp_path / "people.tflite", ("efficientdet", "torch")))
