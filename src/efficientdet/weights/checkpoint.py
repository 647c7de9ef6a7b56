"""Our checkpoints: safetensors files with all that a detector needs beside the weights in their metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from efficientdet.atomic_write import replacing
from efficientdet.errors import EfficientDetError, WeightsError, as_error
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.info import METADATA_KEY, CheckpointInfo


def _half(tensor: Tensor) -> Tensor:
    """Kernels as float16; batch norms and biases are few, and small variances would round to zero."""
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


def save_checkpoint(path: str | Path, state: dict[str, Tensor], info: CheckpointInfo, half: bool = False) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file, named `.safetensors`; an existing one is replaced.
        state: the network's state dict.
        info: its metadata.
        half: store kernels as float16, which halves the file.

    Raises:
        WeightsError: the file cannot be written; names it and says why.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if half:
        tensors = {name: _half(tensor) for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            fields = json.loads(info.to_json())
            text = json.dumps({**fields, "sha256": _checksum(fields, tensors)})
            save_file(tensors, temporary, {METADATA_KEY: text})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error


def read_info(path: str | Path) -> CheckpointInfo:
    """Read a checkpoint's metadata. The whole file is read and compared with its checksum, as by `load_checkpoint`.

    Raises:
        WeightsError: the file is missing, damaged, or not a checkpoint of ours; says what to do.
    """
    return _read(Path(path))[0]


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file is a checkpoint of this package."""
    if Path(path).suffix != ".safetensors" or not os.path.isfile(path):
        return False
    try:
        with safe_open(path, "pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_checkpoint(path: str | Path) -> tuple[EfficientDet, CheckpointInfo]:
    """Build a checkpoint's network with its weights: float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: the file is missing, damaged, not a checkpoint of ours, or has NaN or infinite weights; or its
            tensors do not fit its network.
    """
    path = Path(path)
    info, state = _read(path)
    check_finite(state, str(path))
    try:
        with torch.device("meta"):
            model = EfficientDet(info.spec, len(info.class_names))
    # A wrong type or size in the spec fails wherever it is first used.
    except (EfficientDetError, TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged metadata: no network can be built from its spec ({error})") from error
    fit_state(model, state, str(path), info.spec.name)
    if any(buffer.is_meta for name, buffer in model.named_buffers() if name not in state):
        # Some of timm's models compute constants while they are built, which no file holds.
        model = EfficientDet(info.spec, len(info.class_names))
    model.load_state_dict(state, assign=True)
    return model.float().eval().requires_grad_(True), info


def is_intact(path: str | Path) -> bool:
    """Whether a file is a checkpoint of this package that matches its checksum."""
    try:
        _read(Path(path))
    except WeightsError:
        return False
    return True


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are NaN or infinite; `source` says where they are from.

    Raises:
        WeightsError: some are; names their tensors.
    """
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(
            f"{source}: {len(bad)} tensors have NaN or infinite values ({', '.join(bad[:3])}...), as after a training "
            "that diverged; use an earlier checkpoint, or train again with a lower learning rate"
        )


def fit_state(model: nn.Module, state: dict[str, Tensor], source: str, name: str) -> None:
    """Check that a state dict, from `source`, fits the module called `name`: names, shapes and types of the tensors.

    Raises:
        WeightsError: it does not fit; lists every mismatch.
    """
    own = model.state_dict()
    problems = mismatches(shapes_of(own), shapes_of(state))
    problems += [
        f"type: {name} is {state[name].dtype}, the model has {tensor.dtype}"
        for name, tensor in own.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    refuse_mismatches(problems, f"{source}: {len(problems)} tensors do not fit {name}")


def refuse_mismatches(problems: list[str], message: str) -> None:
    """Raise a WeightsError that lists the problems, if there are any."""
    if problems:
        raise WeightsError("\n  ".join([f"{message}:", *problems]))


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors or arrays, by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def mismatches(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """A line for each tensor that is missing, unexpected or of another shape; `names` are the file's own."""
    lines = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    for name, shape in found.items():
        theirs = names[name] if names else name
        if name not in expected:
            lines.append(f"unexpected: {theirs} {shape}")
        elif shape != expected[name]:
            lines.append(f"shape: {theirs} is {shape}, the model has {expected[name]}")
    return lines


def _read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Metadata and tensors of a checkpoint that matches its checksum: the one place that reads a file of ours."""
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such weights file")
    damaged = (
        f"{path}: not a safetensors file, or a damaged one; convert weights of another kind (.pth, .h5) first: "
        "efficientdet convert FILE --to OUT.safetensors"
    )
    with as_error(WeightsError, damaged), safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise WeightsError(
                f"{path}: a safetensors file, but not a checkpoint of this package (it does not name its network "
                f"and classes); convert it first: efficientdet convert {path.name} --to OUT.safetensors"
            )
        info = CheckpointInfo.from_json(text, path)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fields = json.loads(text)
        if fields.pop("sha256", None) != _checksum(fields, state):
            raise WeightsError(
                f"{path}: damaged: its contents do not match its checksum; copy or download the file again"
            )
    return info, state


def _checksum(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a checkpoint's metadata and of the names, types, shapes and bytes of its tensors."""
    digest = hashlib.sha256(json.dumps(fields).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
