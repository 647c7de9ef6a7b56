"""The programs of examples/ as real processes, on real files, with this package (and torch) out of reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientdet.exporting.export import export
from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector

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
