"""Weights files of any kind to names and tensors, without running what a file may hold."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from efficientdet.errors import WeightsError
from efficientdet.weights.tensorflow_files import read_tensorflow

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_TENSORFLOW = (".h5", ".hdf5", ".index")


def read_state(path: str | Path) -> Mapping[str, Any]:
    """Read a weights file of another implementation: safetensors, torch's pickles, TensorFlow's h5 and checkpoints.

    Args:
        path: `.safetensors`, `.pth`, `.pt`, `.bin`, `.ckpt`, `.tar`, `.h5`, `.hdf5`, `.index`, the prefix of a
            TensorFlow checkpoint, or a folder that holds one.

    Returns:
        What the file holds: name to tensor or array, or a dict with such a dict in it. For `load_foreign`.

    Raises:
        WeightsError: missing, damaged, of an unknown kind, or a pickle that holds more than tensors; names the file.
        MissingExtraError: h5py is needed and not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    is_checkpoint = path.is_dir() or path.with_name(path.name + ".index").is_file()
    if suffix in _TENSORFLOW or is_checkpoint:
        return read_tensorflow(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    if suffix not in _PICKLES:
        known = ", ".join((".safetensors", *_PICKLES, *_TENSORFLOW))
        raise WeightsError(f"{path}: weights of an unknown kind; known are {known}")
    state = load_pickle_safely(path)
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors")
    return state


def load_pickle_safely(path: str | Path) -> Any:
    """Open a file of `torch.save` on the CPU, without running code: tensors, numbers, texts and their containers only.

    Settings that a training script saved as `argparse.Namespace` are let through: they are only names and values.

    Raises:
        WeightsError: missing, damaged, or it holds something else, which is refused; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused: it holds more than tensors ({_reason(error)}), and a pickle can run any program. If you "
            "made this file yourself, save again only the tensors: torch.save(model.state_dict(), FILE)"
        ) from error
    # Damaged files make torch raise nearly anything (RuntimeError, EOFError, KeyError, UnicodeDecodeError ...).
    except Exception as error:
        raise WeightsError(f"{path}: not a file of torch.save, or a damaged one ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The line of torch's long message that says what was found; the others tell how to switch the check off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    reason = (telling or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error:").strip()
    return reason.split(" was not an allowed global")[0].split("Please use")[0].rstrip(". ")
