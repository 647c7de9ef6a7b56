"""Weights of other implementations (effdet, zylo117, TensorFlow), tensor by tensor; whatever does not fit is listed.

All of them predict (dy, dx, dh, dw). The order is reversed here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efficientdet.errors import WeightsError, find_name
from efficientdet.network.efficientdet import CLASS_LAYER, EfficientDet
from efficientdet.weights.checkpoint import mismatches, shapes_of
from efficientdet.weights.remap.effdet import EFFDET
from efficientdet.weights.remap.layout import Dialect, Found, redundant_biases
from efficientdet.weights.remap.tensorflow import TENSORFLOW
from efficientdet.weights.remap.zylo117 import ZYLO

DIALECTS: dict[str, Dialect] = {"tensorflow": TENSORFLOW, "zylo": ZYLO, "effdet": EFFDET}

# Swapping both pairs turns (dy, dx, dh, dw) into (dx, dy, dw, dh), and back.
_SWAP_XY = (1, 0, 3, 2)
# Where training scripts put the weights; averaged ones come first.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PLAIN = ("state_dict", "model_state_dict", "model", "module")

# How often such dictionaries may stand within each other.
_DEEPEST = 8


def load_foreign(model: EfficientDet, state: Mapping[str, Any], source: str = "effdet") -> list[str]:
    """Load another implementation's weights into a network; every tensor must fit.

    The state may be nested as training scripts save it (averaged weights are preferred), and its names may have the
    prefixes of benches, DataParallel and torch.compile. Counters of batch norms may be missing. Biases right before
    batch norms may be missing if all of them are: they become zero, which is the same function. Biases that only the
    state has are subtracted from the running means of the batch norms, which is the same function too.

    Args:
        model: a network with the architecture of the weights; changed in place.
        state: tensors or numpy arrays by name, as the file of the other implementation holds them.
        source: `effdet`, `zylo`, `tensorflow`, or `auto` to find it by the names.

    Returns:
        Names and shapes of what was dropped: tensors without any effect in the other implementation.

    Raises:
        UnknownNameError: the source is not known.
        WeightsError: a tensor is missing, unexpected, or has another shape; lists them all and changes nothing.
    """
    flat = unwrap(state)
    source = detect_source(flat) if source == "auto" else source
    dialect = DIALECTS[find_name("source of weights", source, DIALECTS)]
    theirs = dialect.clean(flat, model)
    dropped = [theirs.pop(extra) for extra in dialect.unused(model) if extra in theirs]
    own = in_dialect(model, dialect)
    for name in own:
        if name.endswith("num_batches_tracked"):
            theirs.setdefault(name, Found(name, own[name]))
    biases = {dialect.names(ours, model)[0]: (ours, means) for ours, means in redundant_biases(model).items()}
    if biases.keys() & theirs.keys():  # all or none: a state that has some of them has lost the others
        own |= {name: model.state_dict()[means[0]] for name, (_, means) in biases.items()}
    else:
        theirs |= {name: Found(name, torch.zeros_like(own[name])) for name in biases if name in own}
        biases = {}
    class_layer = [name for leaf in ("weight", "bias") for name in dialect.names(CLASS_LAYER + leaf, model)]
    _check(model, own, theirs, class_layer)
    state = model.state_dict()
    parts = {name: [theirs[part].tensor for part in dialect.names(name, model)] for name in state}
    ours = {name: _swap_box_order(name, dialect.join(name, found)) for name, found in parts.items() if found}
    for name, (bias, means) in biases.items():
        for mean in () if bias in ours else means:  # (x + b) - m = x - (m - b)
            ours[mean] = ours[mean] - theirs[name].tensor.to(ours[mean])
    model.load_state_dict(ours, strict=False)
    return [f"{found.name} {found.shape}" for found in dropped]


def to_foreign(model: EfficientDet, target: str = "effdet") -> dict[str, Tensor]:
    """A network's weights under another implementation's names and in its layout.

    `load_foreign` reads them back bit for bit, except for the counters of batch norms, which TensorFlow does not have.

    Args:
        model: any network that the other implementation can build.
        target: `effdet`, `zylo` or `tensorflow` (the names of graph checkpoints and h5 files).

    Returns:
        Copies of the tensors, by name.

    Raises:
        UnknownNameError: the target is not known.
        WeightsError: the other implementation cannot build such a network; names the part.
    """
    dialect = DIALECTS[find_name("target of weights", target, DIALECTS)]
    theirs = {name: tensor.clone() for name, tensor in in_dialect(model, dialect).items()}
    return theirs | {name: torch.ones(shape) for name, shape in dialect.unused(model).items()}


def in_dialect(model: EfficientDet, dialect: Dialect) -> dict[str, Tensor]:
    """A network's tensors under the names and in the layout of a dialect; they share its memory."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if names := dialect.names(name, model):
            theirs |= zip(names, dialect.split(name, _swap_box_order(name, tensor)), strict=True)
    return theirs


def unwrap(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the state dict in what a file holds: the whole of it, or nested; averaged weights are preferred.

    Raises:
        WeightsError: there is no state dict; says what there is instead.
    """
    for _ in range(_DEEPEST):
        inner = (state[key] for key in (*_AVERAGED, *_PLAIN) if isinstance(state.get(key), Mapping) and state[key])
        state = next(inner, state)
    tensors = {
        name: _as_tensor(value)
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, (Tensor, np.ndarray))
    }
    others = [str(name) for name in state if name not in tensors]
    if not tensors or others:
        what = f"found {', '.join(others[:5])}" if others else "it is empty"
        raise WeightsError(f"expected a dictionary of tensors, or one that holds it as 'state_dict'; {what}")
    return tensors


def _as_tensor(value: Tensor | np.ndarray) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def detect_source(state: Mapping[str, Any]) -> str:
    """Find by the tensors' names whose weights these are: `effdet`, `zylo` or `tensorflow`.

    Raises:
        WeightsError: they are none of these; gives the first names.
    """
    for source, dialect in DIALECTS.items():
        if any(map(dialect.is_theirs, state)):
            return source
    raise WeightsError(
        "these are not weights of effdet, zylo117 or TensorFlow's EfficientDet; the first names are "
        + ", ".join(list(state)[:4])
    )


def _check(
    model: EfficientDet, expected: Mapping[str, Tensor], theirs: Mapping[str, Found], class_layer: list[str]
) -> None:
    """Refuse a state that lacks a tensor, has one too many, or one of another shape."""
    problems = mismatches(shapes_of(expected), shapes_of(theirs), {name: found.name for name, found in theirs.items()})
    of_class_layer = tuple(f"shape: {theirs[name].name} " for name in class_layer if name in theirs)
    hint = ""
    if all(problem.startswith(of_class_layer) for problem in problems):
        hint = "\nOnly the number of classes differs: give the network as many as the weights have"
    if problems:
        raise WeightsError(
            f"{len(problems)} tensors do not fit {model.spec.name} with {model.num_classes} classes:\n  "
            + "\n  ".join(problems)
            + hint
        )


def _swap_box_order(name: str, tensor: Tensor) -> Tensor:
    """Permute the output channels of the box head's last convolution; leave every other tensor alone."""
    if not name.startswith("box_head.predict.pointwise."):
        return tensor
    per_anchor = tensor.reshape(-1, 4, *tensor.shape[1:])
    return per_anchor[:, list(_SWAP_XY)].reshape(tensor.shape)
