"""A killed run that is resumed ends with the weights, to the bit, of a run that was left in peace."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun

if not hasattr(os, "fork"):
    pytest.skip("processes are forked to be killed, which this system does not know", allow_module_level=True)

# Five batches an epoch, three epochs.
PICTURES = {"train": 10, "val": 2}
STEP = ("DetectionModule", "training_step")
ANYWHERE = random.SystemRandom().randrange(1, 15)
# Name of the case: settings, and where the process is killed: owner, method, number of the call.
CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "before anything was saved": ({}, [*STEP, 1]),
    "in the middle of an epoch": ({}, [*STEP, 8]),
    "before a step drawn by chance": ({}, [*STEP, ANYWHERE]),
    "at the end of an epoch": ({}, [*STEP, 10]),
    "in the last step": ({}, [*STEP, 14]),
    "in an evaluation": ({}, ["DetectionModule", "validation_step", 1]),
    "between the network and the state": ({}, ["SaveCheckpoints", "_save_network", 1]),
    "accumulating, between the two batches": ({"accumulate": 2}, [*STEP, 8]),
    "accumulating, at the end of an epoch": ({"accumulate": 2}, [*STEP, 5]),
    "with a loader process": ({"workers": 1}, [*STEP, 8]),
    "with a loader process, at the end of an epoch": ({"workers": 1}, [*STEP, 10]),
    "without evaluation": ({"split": "train.json"}, [*STEP, 7]),
    "without evaluation, at the end of an epoch": ({"split": "train.json"}, [*STEP, 10]),
    "with rare evaluations, at the end of an epoch": ({"evaluate_every": 2}, [*STEP, 5]),
}
# The others are slow.
BY_DEFAULT = (
    "before anything was saved", "in the middle of an epoch", "before a step drawn by chance",
    "between the network and the state", "accumulating, at the end of an epoch", "with a loader process",
)  # fmt: skip
COMMON = {"save_every": 1, "drop_path": 0.3, "ema_decay": 0.9, "seed": 5}


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {**COMMON, **{name: value for name, value in settings.items() if name != "split"}}


@pytest.fixture(scope="module")
def pictures(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", PICTURES)
    return folder


@pytest.fixture(scope="module")
def killed(pictures: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Path]:
    """Folder of the killed run by case, of those that are tested."""
    folder = tmp_path_factory.mktemp("killed")
    tested = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}  # type: ignore[attr-defined]
    folders = {name: folder / str(number) for number, name in enumerate(CASES) if name in tested}
    cases = [
        {"data": str(pictures / settings.get("split", "")), "out": str(folders[name]), "kill": kill,
         "settings": _settings(settings)}
        for name, (settings, kill) in CASES.items() if name in tested
    ]  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).parent / "train_and_die.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "cases.json")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folders


@pytest.fixture(scope="module")
def in_peace(
    shapes: ModuleType, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], TrainingRun]:
    """A run of these settings that is not disturbed; loader processes change nothing, so both kinds share one."""
    runs: dict[str, TrainingRun] = {}

    def run(settings: dict[str, Any]) -> TrainingRun:
        others = {name: value for name, value in settings.items() if name != "workers"}
        if str(others) not in runs:
            chosen = {**shapes.SETTINGS, **_settings(others)}
            data = pictures / others.get("split", "")
            runs[str(others)] = train(shapes.TINY, data, out=tmp_path_factory.mktemp("peace") / "run", **chosen)
        return runs[str(others)]

    return run


@pytest.mark.parametrize(
    "name", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_killed_run_ends_with_the_same_weights(
    name: str,
    shapes: ModuleType,
    pictures: Path,
    killed: dict[str, Path],
    in_peace: Callable[[dict[str, Any]], TrainingRun],
) -> None:
    settings, place = CASES[name]
    data = pictures / settings.get("split", "")
    chosen = {**shapes.SETTINGS, **_settings(settings)}
    resumed = train(shapes.TINY, data, out=killed[name], resume=True, **chosen)
    expected = in_peace(settings)
    assert _tensors(resumed.last) == _tensors(expected.last), f"killed in {place}"
    assert _tensors(resumed.best) == _tensors(expected.best)
    assert resumed.report == expected.report


def _tensors(checkpoint: Path) -> bytes:
    """The bytes of the weights: the header before them tells the settings, of which `workers` may differ."""
    content = checkpoint.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]
