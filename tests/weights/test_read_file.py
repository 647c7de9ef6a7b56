"""Weights files of every kind, and pickles that would run a program."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from efficientdet.errors import WeightsError
from efficientdet.weights.read_file import load_pickle_safely, read_state

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.num_batches_tracked": torch.tensor(3)}


class Evil:
    """Runs a command when it is unpickled in the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_load(tmp_path: Path, zipped: bool) -> None:
    nested = {"state_dict": STATE, "epoch": 3, "metric": 0.5, "args": argparse.Namespace(lr=0.1, model="d0")}
    torch.save(nested, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_pickle_safely(tmp_path / "a.pth")
    assert loaded["args"].lr == 0.1
    assert torch.equal(loaded["state_dict"]["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_a_program_is_refused(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({**STATE, "x": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.pth: refused: it holds more than tensors .*system"):
        load_pickle_safely(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap is armed: unpickled without care it does run
    assert marker.exists()


def test_a_bare_pickle_that_runs_a_program_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        load_pickle_safely(path)
    assert not marker.exists()


def test_a_whole_pickled_network_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*save again only the tensors"):
        load_pickle_safely(tmp_path / "model.pth")


@pytest.mark.parametrize("content", [b"", b"\x80", b"<html>404</html>", b"PK\x03\x04 cut", bytes(1000)])
def test_rubbish_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pth: "):
        load_pickle_safely(tmp_path / "a.pth")


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"a\.pth: not a file of torch\.save, or a damaged one"):
        load_pickle_safely(tmp_path / "a.pth")


def test_a_zip_of_something_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(WeightsError, match=r"a\.pth: not a file of torch\.save"):
        load_pickle_safely(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (load_pickle_safely, read_state):
        with pytest.raises(WeightsError, match=r"none\.pth: no such weights file"):
            read(tmp_path / "none.pth")


# ---- any kind
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".PTH"])
def test_pickles_by_any_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(STATE, path)
    assert torch.equal(read_state(path)["a.weight"], STATE["a.weight"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert torch.equal(read_state(tmp_path / "a.safetensors")["a.weight"], STATE["a.weight"])
    (tmp_path / "b.safetensors").write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match=r"b\.safetensors: not a safetensors file"):
        read_state(tmp_path / "b.safetensors")


def test_h5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["class_net/class-0/bias:0"] = np.zeros(3, np.float32)
    assert list(read_state(tmp_path / "a.h5")) == ["class_net/class-0/bias:0"]


def test_a_prefix_or_folder_is_taken_for_tensorflows(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt-1.index").write_bytes(b"rubbish")
    for path in (tmp_path / "model.ckpt-1", tmp_path):
        with pytest.raises(WeightsError, match=r"model\.ckpt-1\.index: a damaged TensorFlow checkpoint"):
            read_state(path)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"a\.onnx: weights of an unknown kind; known are \.safetensors, \.pth"):
        read_state(tmp_path / "a.onnx")


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: holds a Tensor, not a dictionary of tensors"):
        read_state(tmp_path / "a.pth")
