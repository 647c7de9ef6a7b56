"""Weights files of other projects, and what they hold as checkpoints of ours. No code that a file may hold is run."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from efficientdet.errors import WeightsError, as_error, require
from efficientdet.family import MODELS, VARIANTS, ModelSpec, find_spec
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet
from efficientdet.weights.checkpoint import check_finite
from efficientdet.weights.foreign import DIALECTS, detect_source, load_foreign, to_foreign, unwrap
from efficientdet.weights.info import CheckpointInfo, default_preprocessing
from efficientdet.weights.registry import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

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


def convert_file(
    path: str | Path,
    model: str | None = None,
    source: str = "auto",
    class_names: Sequence[str] | None = None,
) -> tuple[EfficientDet, CheckpointInfo]:
    """Read a weights file of another implementation into a network.

    Args:
        path: see `read_state`.
        model: name of the network; None to find it by the tensors' shapes.
        source: `effdet`, `zylo`, `tensorflow`, or `auto` to find it by the tensors' names.
        class_names: by label; None for COCO's 90 slots, or `class-0`, `class-1`, ... for another number of classes.

    Returns:
        The network in evaluation mode, and the facts for its checkpoint.

    Raises:
        WeightsError: the file cannot be read, fits no member of the family or several, or the number of names is wrong.
        UnknownNameError: the model or the source is not known.
    """
    state = read_state(path)
    flat = unwrap(state)
    source = detect_source(flat) if source == "auto" else source
    num_classes = _num_classes(flat, source)
    spec = find_spec(model) if model is not None else _guess_spec(flat, source, num_classes, str(path))
    network = EfficientDet(spec, num_classes)
    load_foreign(network, state, source)
    check_finite(network.state_dict(), str(path))
    names = _class_names(class_names, num_classes, str(path))
    is_coco = names == COCO_CLASS_NAMES
    info = CheckpointInfo(
        spec=spec,
        class_names=names,
        category_ids=COCO_CATEGORY_IDS if is_coco else tuple(range(num_classes)),
        preprocessing=default_preprocessing(spec),
        about={"source": f"{source} weights, {Path(path).name}"},
    )
    return network.eval(), info


def _num_classes(state: Mapping[str, Tensor], source: str) -> int:
    """Number of classes of a state dict: the outputs of the class head's last layer over the nine anchors."""
    with torch.device("meta"):
        probe = EfficientDet(MODELS["d0"], 1)
    theirs = DIALECTS[source].clean(state, probe)
    (name,) = DIALECTS[source].names("class_head.predict.pointwise.bias", probe)
    if name not in theirs:
        raise WeightsError(f"the class head's last layer, {name}, is missing; are these weights of a whole detector?")
    return max(1, theirs[name].tensor.numel() // probe.spec.anchors_per_cell)


def _guess_spec(state: Mapping[str, Tensor], source: str, num_classes: int, path: str) -> ModelSpec:
    """The member of the family that has just these tensors."""
    family = [*MODELS.values(), *VARIANTS.values()]
    differing = [_count_differing(spec, state, source, num_classes) for spec in family]
    fitting = [spec for spec, count in zip(family, differing, strict=True) if not count]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(spec.name for spec in fitting)
        raise WeightsError(f"{path}: fits {names} alike; say which of them with model")
    fewest = min(differing)
    closest = family[differing.index(fewest)].name
    raise WeightsError(
        f"{path}: fits no member of the family; the closest is {closest}, from which {fewest} tensors differ. "
        f"Name it with model={closest!r} to see which"
    )


def _count_differing(spec: ModelSpec, state: Mapping[str, Tensor], source: str, num_classes: int) -> int:
    """Tensors that only one of a network and a state has, or that differ in shape."""
    with torch.device("meta"):
        network = EfficientDet(spec, num_classes)
        expected = {name: tensor.shape for name, tensor in to_foreign(network, source).items()}
    found = {name: part.shape for name, part in DIALECTS[source].clean(state, network).items()}
    names = (expected.keys() | found.keys()) - DIALECTS[source].unused(network).keys()
    return sum(expected.get(name) != found.get(name) for name in names if not name.endswith("num_batches_tracked"))


def _class_names(given: Sequence[str] | None, num_classes: int, path: str) -> tuple[str, ...]:
    if given is None:
        return COCO_CLASS_NAMES if num_classes == COCO_SLOTS else tuple(f"class-{i}" for i in range(num_classes))
    if len(given) != num_classes:
        raise WeightsError(f"{path}: has {num_classes} classes, but {len(given)} class names were given")
    return tuple(given)
