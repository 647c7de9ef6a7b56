"""Processes that torchrun or SLURM starts (SLURM is played here: its variables, and two processes of this machine)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from efficientdet.errors import SettingError
from efficientdet.training.processes import find_group
from efficientdet.training.run import train

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
}  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_NNODES": "2", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "node[3-4]",
    "SLURM_STEP_ID": "0",
}  # fmt: skip
# A run in one of the processes; `kill` is the rank that ends itself before its second step.
SCRIPT = """
import json, os, signal, sys
from efficientdet.errors import EfficientDetError
from efficientdet.family import ModelSpec
from efficientdet.training.processes import find_group
from efficientdet.training.module import DetectionModule
from efficientdet.training.run import train

spec, data, out, kill, settings = json.loads(sys.argv[1])
step = DetectionModule.training_step
def killing(self, batch, batch_idx):
    if self.global_rank == kill and self.global_step == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
DetectionModule.training_step = killing
try:
    run = train(ModelSpec.from_dict(spec), data, out=out, **settings)
except EfficientDetError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
print(f"rank {find_group().rank}: {run.metrics.ap!r} {run.folder}")
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*TORCHRUN, *SLURM}:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def images(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 8, "val": 3})
    return folder


def _set(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_process_started_alone_has_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_group().devices == 1
    _set(monkeypatch, {"WORLD_SIZE": "1", "RANK": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"})
    alone = find_group()
    assert (alone.rank, alone.devices, alone.machines, alone.launcher) == (0, 1, 1, "")
    assert alone.share("job") == "job"


@pytest.mark.parametrize(("variables", "launcher"), [(TORCHRUN, "torchrun"), (SLURM, "srun")])
def test_the_variables_of_a_launcher_are_read(
    variables: dict[str, str], launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, variables)
    found = find_group()
    assert (found.rank, found.devices, found.machines, found.launcher) == (3, 4, 2, launcher)
    assert found.environment.local_rank() == 1


def test_the_batch_script_of_an_allocation_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"})
    assert find_group().devices == 1


def test_what_a_launcher_leaves_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"})
    with pytest.raises(SettingError, match="LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_PORT is not set; start with torchrun"):
        find_group()
    _set(monkeypatch, {**TORCHRUN, "WORLD_SIZE": "3"})
    with pytest.raises(SettingError, match="torchrun started 3 processes, 2 of them on this machine"):
        find_group()
    monkeypatch.delenv("WORLD_SIZE")
    _set(monkeypatch, {name: value for name, value in SLURM.items() if name != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(SettingError, match="SLURM: .*--ntasks-per-node=4"):
        find_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _srun(job: list[Any], processes: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Start the script as srun would: one process a task, told by variables which it is."""
    common = {
        **os.environ, **SLURM, "SLURM_NTASKS": str(processes), "SLURM_NTASKS_PER_NODE": str(processes),
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, json.dumps(job)]
    started = []
    for rank in range(processes):
        own = common | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        started.append(subprocess.Popen(command, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    said = [process.communicate(timeout=900) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *text)
        for process, text in zip(started, said, strict=True)
    ]


@pytest.mark.slow
def test_slurm_trains_as_own_processes_do(images: Path, shapes: ModuleType, tmp_path: Path) -> None:
    settings = {**shapes.SETTINGS, "epochs": 2}
    first, second = _srun([shapes.LITE.to_dict(), str(images), str(tmp_path / "slurm"), None, settings])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    own = train(shapes.LITE, images, out=tmp_path / "own", devices=2, **settings)
    assert own.metrics is not None
    for rank, done in enumerate((first, second)):
        assert done.stdout == f"rank {rank}: {own.metrics.ap!r} {tmp_path / 'slurm'}\n"
    expected = load_file(own.last)
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in load_file(tmp_path / "slurm/last.safetensors").items()
    )
    assert json.loads((tmp_path / "slurm" / "config.json").read_text())["config"]["devices"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "slurm"]


def _torchrun(images: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(_free_port()),
        "-m", "efficientdet", "train", "lite0", "--data", str(images), "--out", str(out), "--epochs", "1",
        "--image-size", "64", "--batch-size", "2", "--device", "cpu", "--precision", "fp32",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def test_torchrun_trains_by_the_command_line(images: Path, tmp_path: Path) -> None:
    done = _torchrun(images, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    for text in ("best checkpoint: ", "epoch 1/1: loss ", "train: 8 images", "training on cpu, 2 processes, "):
        assert said.count(text) == 1, said  # by the first process alone
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_torchrun_leaves_a_run_that_is_there_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    done = _torchrun(images, tmp_path / "run")
    assert done.returncode == 1
    assert f"{tmp_path / 'run'} holds a run already; resume it" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_end_of_a_process_is_told_by_the_others(
    rank: int, images: Path, shapes: ModuleType, tmp_path: Path
) -> None:
    settings = {**shapes.SETTINGS, "epochs": 2, "save_every": 1}
    done = _srun([shapes.LITE.to_dict(), str(images), str(tmp_path / "run"), rank, settings])
    assert done[rank].returncode == -signal.SIGKILL
    assert done[1 - rank].returncode == 2, done[1 - rank].stderr
    assert f"error: process {rank} of 2 has ended (rank {rank}; " in done[1 - rank].stderr
    assert "resume it from its last save" in done[1 - rank].stderr


@pytest.mark.slow
def test_an_error_of_the_first_ends_all(shapes: ModuleType, tmp_path: Path) -> None:
    done = _srun([shapes.LITE.to_dict(), str(tmp_path / "none"), str(tmp_path / "run"), None, shapes.SETTINGS])
    for process in done:
        assert process.returncode == 2
        assert "none: no such dataset" in process.stderr
        assert "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_number_of_devices_than_processes_is_refused(images: Path, shapes: ModuleType, tmp_path: Path) -> None:
    settings = {**shapes.SETTINGS, "devices": 3}
    done = _srun([shapes.LITE.to_dict(), str(images), str(tmp_path / "run"), None, settings])
    for process in done:
        assert process.returncode == 2
        assert "devices is 3, but srun started 2 processes; leave devices out" in process.stderr
