"""Weights of other implementations as checkpoints of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.family import MODELS, VARIANTS, ModelSpec, find_spec
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet
from efficientdet.weights.checkpoint import check_finite
from efficientdet.weights.foreign import DIALECTS, detect_source, load_foreign, to_foreign, unwrap
from efficientdet.weights.info import CheckpointInfo, default_preprocessing
from efficientdet.weights.read_file import read_state
from efficientdet.weights.registry import COCO_CATEGORY_IDS, COCO_CLASS_NAMES


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
