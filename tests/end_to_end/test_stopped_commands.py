"""`train` and `predict`, ended by KILL, TERM or INT at any time: the right exit code, and nothing lost.

Slow tests end 20 trainings, and 20 predictions by each of the signals.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

if not hasattr(os, "fork"):
    pytest.skip("processes are forked to be stopped, which this system does not know", allow_module_level=True)

INT, KILL, TERM = 2, 9, 15
SIGNALS = [KILL, TERM, INT]
# Of a signal: what the command ends with. TERM has its default effect until there is something to save.
CODES = {INT: (130,), KILL: (-KILL,), TERM: (143, -TERM)}
TRAIN = [
    "train", "lite0", "--epochs", "3", "--image-size", "64", "--batch-size", "2", "--save-every", "2",
    "--device", "cpu", "--precision", "fp32", "--workers", "0", "--drop-path", "0.2",
]  # fmt: skip
IMAGES = 150


def _stop(arguments: list[str], imports: list[str], signals: list[int], folder: Path, resumes: bool) -> list[Any]:
    """What became of a command that was stopped by each of the signals."""
    seed = random.SystemRandom().randrange(2**32)
    job = {"arguments": arguments, "imports": imports, "folder": str(folder), "signals": signals, "seed": seed,
           "resumes": resumes}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).parent / "run_and_stop.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "job.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["whole"] == 0, (folder / "whole.log").read_text()
    outcomes: list[Any] = report["outcomes"]
    for outcome in outcomes:
        outcome["seed"] = seed
        assert "Traceback" not in outcome["said"], _told(outcome)
    return outcomes


def _told(outcome: Any) -> str:
    return json.dumps(outcome, indent=1)


def _weights(checkpoint: Path) -> dict[str, bytes]:
    with safe_open(checkpoint, "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def _stop_training(signals: list[int], shapes: ModuleType, folder: Path) -> None:
    data = shapes.write_shapes(folder / "shapes", {"train": 8, "val": 2})
    imports = ["efficientdet.training.callbacks", "efficientdet.training.run"]
    outcomes = _stop([*TRAIN, "--data", str(data)], imports, signals, folder, resumes=True)
    expected = _weights(folder / "whole" / "last.safetensors")
    for number, outcome in enumerate(outcomes):
        told = _told(outcome)
        has_finished = "best checkpoint: " in outcome["said"]  # before the signal came
        assert outcome["code"] in ((0,) if has_finished else CODES[outcome["signal"]]), told
        if outcome["has_begun"] and outcome["code"] in (130, 143):
            command = f"efficientdet train lite0 --data {data} --out {folder / str(number)} --resume"
            assert f"the run can be resumed: {command}" in outcome["said"].splitlines(), told
        assert outcome["resumed"] == 0, told
        assert _weights(folder / str(number) / "last.safetensors") == expected, told


@pytest.mark.slow
def test_training_that_is_stopped_at_any_time(shapes: ModuleType, tmp_path: Path) -> None:
    _stop_training(SIGNALS, shapes, tmp_path)


@pytest.mark.slow
def test_trainings_that_are_stopped_at_any_time(shapes: ModuleType, tmp_path: Path) -> None:
    _stop_training((SIGNALS * 7)[:20], shapes, tmp_path)


def _whole_images(folder: Path) -> set[str]:
    """Names of the annotated copies, each of which can be read to its end."""
    names = set()
    for path in folder.glob("*.jpg"):
        with Image.open(path) as image:
            image.load()
        names.add(path.name)
    return names


def _check_predictions(outcome: Any, out: Path) -> None:
    code, said, told = outcome["code"], outcome["said"], _told(outcome)
    images = _whole_images(out)
    others = {path.name for path in out.iterdir()} - images if out.exists() else set()
    if "detections.json" in others:  # the command came to its end, or said how far it came
        report = json.loads((out / "detections.json").read_text())
        assert {Path(entry["annotated"]).name for entry in report["images"]} == images, told
        assert report["complete"] == (len(images) == IMAGES), told
        assert others == {"detections.json"} or code == -KILL, told
        count = len(report["images"])
        assert report["complete"] or f"stopped after {count} of {IMAGES} images; their results are in" in said, told
    elif code == -KILL and others:
        lines = (out / "detections.partial.jsonl").read_text().split("\n")[:-1]
        listed = {Path(json.loads(line)["annotated"]).name for line in lines}
        assert listed <= images and len(images - listed) <= 1, told  # killed between the image and its line
        assert all(name == "detections.partial.jsonl" or name.endswith(".part") for name in others), told
    else:  # before it began
        assert not images and not others, told
        assert code in (-KILL, -TERM, 130, 143), told
    has_finished = f"{IMAGES} images, " in said
    assert code in (0, *CODES[outcome["signal"]]) if has_finished else code in CODES[outcome["signal"]], told


def _stop_predicting(signals: list[int], checkpoint: Path, folder: Path) -> None:
    (folder / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for number in range(IMAGES):
        Image.fromarray(pixels).save(folder / "in" / f"{number:04}.png")
    arguments = ["predict", str(folder / "in"), "--weights", str(checkpoint)]
    outcomes = _stop(arguments, ["efficientdet.inference.detector"], signals, folder, resumes=False)
    for number, outcome in enumerate(outcomes):
        _check_predictions(outcome, folder / str(number))


@pytest.mark.slow
def test_predicting_that_is_stopped_at_any_time(checkpoint: Path, tmp_path: Path) -> None:
    _stop_predicting(SIGNALS, checkpoint, tmp_path)


@pytest.mark.slow
def test_predictions_that_are_stopped_at_any_time(checkpoint: Path, tmp_path: Path) -> None:
    _stop_predicting(SIGNALS * 20, checkpoint, tmp_path)
