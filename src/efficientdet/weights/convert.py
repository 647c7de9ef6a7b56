"""Weights of other implementations -> our checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.family import MODELS, VARIANTS, ModelSpec, find_spec
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet
from efficientdet.weights.checkpoint import METADATA_KEY, CheckpointInfo, default_preprocessing
from efficientdet.weights.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from efficientdet.weights.foreign import DIALECTS, detect_source, load_foreign, unwrap
from efficientdet.weights.read_file import read_state
from efficientdet.weights.registry import ReleasedWeights


def convert_file(
    path: str | Path,
    model: str | None = None,
    source: str = "auto",
    class_names: Sequence[str] | None = None,
) -> tuple[EfficientDet, CheckpointInfo]:
    """Read a weights file of another implementation into a network.

    Args:
        path: see `files.read_state`.
        model: name of the family; None to tell by the shapes.
        source: `effdet`, `zylo`, `tensorflow`, or `auto`.
        class_names: by label; None for COCO's 90 slots, or `class-0`, `class-1`, ... for another number.

    Returns:
        The network, and what a checkpoint of it shall say.

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


def released_checkpoint(state: Mapping[str, Any], row: ReleasedWeights) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """State dict and facts of released weights, from the state that was published."""
    network = EfficientDet(find_spec(row.model), row.num_classes)
    load_foreign(network, state, row.source)
    info = CheckpointInfo(
        spec=network.spec,
        class_names=row.class_names,
        category_ids=row.category_ids,
        preprocessing=row.preprocessing,
        metrics={"ap": row.ap / 100, "data": "COCO val2017, stated by the publisher"},
        about={"license": row.license, "source": row.url, "data": "COCO train2017", "note": row.note},
    )
    return network.state_dict(), info


def is_ours(path: str | Path) -> bool:
    """Whether a file is a checkpoint of this package."""
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _num_classes(state: Mapping[str, Tensor], source: str) -> int:
    """Classes of a state dict: the outputs of the class head's last layer over the nine anchors."""
    with torch.device("meta"):
        probe = EfficientDet(MODELS["d0"], 1)
    theirs = DIALECTS[source].clean(state, probe)
    (name,) = DIALECTS[source].names("class_head.predict.pointwise.bias", probe)
    if name not in theirs:
        raise WeightsError(f"the class head's last layer, {name}, is missing; are these weights of a whole detector?")
    return max(1, theirs[name].tensor.numel() // probe.spec.anchors_per_cell)


def _guess_spec(state: Mapping[str, Tensor], source: str, num_classes: int, path: str) -> ModelSpec:
    """The member of the family whose tensors these are."""
    fitting: list[ModelSpec] = []
    closest: tuple[int, str] | None = None
    for spec in (*MODELS.values(), *VARIANTS.values()):
        with torch.device("meta"):
            network = EfficientDet(spec, num_classes)
        expected = {name for own in network.state_dict() for name in DIALECTS[source].names(own, network)}
        found = DIALECTS[source].clean(state, network)
        differing = {
            name for name in expected ^ set(found) - set(DIALECTS[source].unused(network)) if "num_batches" not in name
        }
        shapes = _shapes_differ(network, found, source)
        if not differing and not shapes:
            fitting.append(spec)
        distance = len(differing) + shapes
        closest = min(closest or (distance, spec.name), (distance, spec.name))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise WeightsError(f"{path}: fits {', '.join(spec.name for spec in fitting)} alike; say which with model")
    assert closest is not None
    raise WeightsError(
        f"{path}: fits no member of the family; the closest is {closest[1]}, from which {closest[0]} tensors differ. "
        f"Name it with model={closest[1]!r} to see which"
    )


def _shapes_differ(network: EfficientDet, found: Mapping[str, Any], source: str) -> int:
    differing = 0
    for own, tensor in network.state_dict().items():
        names = DIALECTS[source].names(own, network)
        for name, part in zip(names, DIALECTS[source].split(own, tensor), strict=False):
            differing += name in found and found[name].tensor.shape != part.shape
    return differing


def _class_names(given: Sequence[str] | None, num_classes: int, path: str) -> tuple[str, ...]:
    if given is None:
        if num_classes == COCO_SLOTS:
            return COCO_CLASS_NAMES
        return tuple(f"class-{label}" for label in range(num_classes))
    if len(given) != num_classes:
        raise WeightsError(f"{path}: has {num_classes} classes, but {len(given)} class names were given")
    return tuple(given)
