"""Weights files of other projects as names and tensors, without running any code that a file may hold."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from efficientdet.errors import WeightsError, as_error, require

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_H5 = (".h5", ".hdf5")
# Bytes of an h5 file's variables in memory; those of the largest network have 0.3 GB.
_LARGEST = 1 << 31


def read_state(path: str | Path) -> Mapping[str, Any]:
    """Read a weights file of another project.

    Args:
        path: a `.safetensors` file; a file of `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`, `.tar`); Keras' `.h5` or
            `.hdf5`; or a TensorFlow checkpoint, given as its `.index` file, its prefix (`model.ckpt-123`) or the folder
            that holds it alone.

    Returns:
        What the file holds, for `load_foreign`: tensors or arrays by name, or a dict that holds such a dict.

    Raises:
        WeightsError: the file is missing, damaged, of an unknown kind, or holds more than tensors; names the file.
        MissingExtraError: TensorFlow or h5py is needed and not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".index" or path.is_dir() or os.path.isfile(f"{path}.index"):
        return _read_tensorflow(path)
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such weights file")
    if suffix in _H5:
        return _read_h5(path)
    if suffix == ".safetensors":
        with as_error(WeightsError, f"{path}: not a safetensors file, or a damaged one"):
            return load_file(path)
    if suffix not in _PICKLES:
        known = ", ".join((".safetensors", *_PICKLES, *_H5, ".index"))
        raise WeightsError(f"{path}: weights of an unknown kind; known are {known}")
    state = load_pickle_safely(path)
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors")
    return state


def load_pickle_safely(path: str | Path) -> Any:
    """Open a file of `torch.save` on the CPU without running code: tensors, numbers, texts and containers of them only.

    Settings that a training script saved as `argparse.Namespace` are allowed: they are only names and values.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything else, which is refused; names the file.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such weights file")
    try:
        _refuse_bomb(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors ({_reason(error)}), and opening it could run any "
            "program. If the file is your own, save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from error
    # A damaged file can make torch raise nearly anything (RuntimeError, EOFError, KeyError, UnicodeDecodeError ...).
    except Exception as error:
        raise WeightsError(f"{path}: not a file of torch.save, or a damaged one ({_reason(error)})") from error


def _refuse_bomb(path: str | Path) -> None:
    """Refuse a file that unpacks to more than it holds: `torch.save` compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > os.path.getsize(path):
            raise ValueError(f"it unpacks to {size:,} bytes, more than the file has")


def _reason(error: Exception) -> str:
    """The line of torch's long message that says what was found; the others tell how to switch the check off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    reason = (telling or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error:").strip()
    return reason.split(" was not an allowed global")[0].split("Please use")[0].rstrip(". ")


def _read_tensorflow(path: Path) -> dict[str, NDArray[Any]]:
    """Every numeric variable of a TensorFlow checkpoint, in TensorFlow's layout."""
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            names = ", ".join(index.stem for index in found)
            raise WeightsError(f"{path}: holds {len(found)} TensorFlow checkpoints ({names}); name the file of one")
        path = found[0]
    prefix = str(path).removesuffix(".index")
    if not os.path.isfile(f"{prefix}.index"):
        raise WeightsError(f"{prefix}.index: no such file; a TensorFlow checkpoint is PREFIX.index and PREFIX.data-*")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it reports on the processor otherwise
    tensorflow = require("tensorflow", "convert")
    with as_error(WeightsError, f"{prefix}.index: a damaged TensorFlow checkpoint"):
        reader = tensorflow.train.load_checkpoint(prefix)
        types = reader.get_variable_to_dtype_map()
        numeric = [name for name, dtype in types.items() if dtype.is_floating or dtype.is_integer or dtype.is_bool]
        values = {name: np.asarray(reader.get_tensor(name)) for name in sorted(numeric)}
    # numpy has no bfloat16.
    return {name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x for name, x in values.items()}


def _read_h5(path: Path) -> dict[str, NDArray[Any]]:
    """Every numeric variable of a Keras file. Whatever points to another file is refused."""
    h5py = require("h5py", "convert")
    values: dict[str, NDArray[Any]] = {}

    def visit(group: Any, prefix: str) -> None:
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise WeightsError(f"{path}: refused, because '{name}' is a link instead of a value")
            item = group[key]
            if isinstance(item, h5py.Group):
                visit(item, f"{name}/")
            elif item.is_virtual or item.external:
                raise WeightsError(f"{path}: refused, because the values of '{name}' are in another file")
            elif item.dtype.kind in "fiub":
                if item.nbytes + sum(value.nbytes for value in values.values()) > _LARGEST:
                    raise WeightsError(f"{path}: refused, because its variables have more than {_LARGEST:,} bytes")
                values[name] = np.asarray(item)

    with as_error(WeightsError, f"{path}: not an h5 file, or a damaged one"), h5py.File(path, "r") as file:
        visit(file, "")
    return values
