"""`efficientdet train`, ended by KILL, TERM or INT at any time: the right exit code, and resumed to equal weights."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open

if not hasattr(os, "fork"):
    pytest.skip("processes are forked to be stopped, which this system does not know", allow_module_level=True)

INT, KILL, TERM = 2, 9, 15
# Of a signal: what the command ends with. TERM has its default effect until the training begins.
CODES = {INT: (130,), KILL: (-9,), TERM: (143, -15)}
ARGUMENTS = [
    "lite0", "--epochs", "3", "--image-size", "64", "--batch-size", "2", "--save-every", "2", "--device", "cpu",
    "--precision", "fp32", "--workers", "0", "--drop-path", "0.2",
]  # fmt: skip


def _weights(checkpoint: Path) -> dict[str, bytes]:
    with safe_open(checkpoint, "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def _stop(signals: list[int], shapes: ModuleType, folder: Path) -> None:
    data = shapes.write_shapes(folder / "shapes", {"train": 8, "val": 2})
    seed = random.SystemRandom().randrange(2**32)
    job = {"arguments": [*ARGUMENTS, "--data", str(data)], "folder": str(folder), "signals": signals, "seed": seed}
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).parent / "train_and_stop.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "job.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["whole"] == 0
    expected = _weights(folder / "whole" / "last.safetensors")
    for number, outcome in enumerate(report["outcomes"]):
        told = f"seed {seed}: {json.dumps(outcome, indent=1)}"
        has_finished = "best checkpoint: " in outcome["said"]  # before the signal came
        assert outcome["code"] in ((0,) if has_finished else CODES[outcome["signal"]]), told
        assert "Traceback" not in outcome["said"], told
        if outcome["has_begun"] and outcome["code"] in (130, 143):
            command = f"efficientdet train lite0 --data {data} --out {folder / str(number)} --resume"
            assert f"the run can be resumed: {command}" in outcome["said"].splitlines(), told
        assert outcome["resumed"] == 0, told
        assert _weights(folder / str(number) / "last.safetensors") == expected, told


def test_a_run_that_is_stopped_at_any_time(shapes: ModuleType, tmp_path: Path) -> None:
    _stop([KILL, TERM, INT], shapes, tmp_path)


@pytest.mark.slow
def test_twenty_runs_that_are_stopped_at_any_time(shapes: ModuleType, tmp_path: Path) -> None:
    _stop([KILL, TERM, INT] * 6 + [KILL, TERM], shapes, tmp_path)
