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
from efficientdet.weights.remap.effdet import EFFDET
from efficientdet.weights.remap.layout import Dialect, Found, redundant_biases
from efficientdet.weights.remap.tensorflow import TENSORFLOW, is_tensorflow
from efficientdet.weights.remap.zylo117 import ZYLO, is_zylo

DIALECTS: dict[str, Dialect] = {"effdet": EFFDET, "zylo": ZYLO, "tensorflow": TENSORFLOW}

# Swapping both pairs turns (dy, dx, dh, dw) into (dx, dy, dw, dh), and back.
_SWAP_XY = (1, 0, 3, 2)
# Where training scripts put the weights; averaged ones come first.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PLAIN = ("state_dict", "model_state_dict", "model", "module")

# How often such dictionaries may stand within each other.
_DEEPEST = 8


def load_foreign(
    model: EfficientDet, state: Mapping[str, Any], source: str = "effdet", replace_head: bool = False
) -> list[str]:
    """Load another implementation's weights into a network; every tensor must fit.

    The state may be nested as training scripts save it (averaged weights are preferred), and its names may have the
    prefixes of benches, DataParallel and torch.compile. Counters of batch norms may be missing. Biases right before
    batch norms may be missing if all of them are: they become zero, which is the same function. Biases that only the
    state has are subtracted from the running means of the batch norms, which is the same function too.

    Args:
        model: a network with the architecture of the weights; changed in place.
        state: tensors or numpy arrays by name, as the file of the other implementation holds them.
        source: `effdet`, `zylo`, `tensorflow`, or `auto` to find it by the names.
        replace_head: allow another number of classes; the network then keeps its own last layer of the class head.

    Returns:
        Names and shapes of what was dropped: the class layer, if its size differs, and tensors without any effect in
        the other implementation.

    Raises:
        UnknownNameError: the source is not known.
        WeightsError: a tensor is missing, unexpected, or has another shape; lists them all and changes nothing.
    """
    flat = unwrap(state)
    name = detect_source(flat) if source == "auto" else source
    name = find_name("source of weights", name, DIALECTS)
    dialect = DIALECTS[name]
    theirs = dialect.clean(flat, model)
    dropped = [_describe(theirs.pop(extra)) for extra in dialect.unused(model) if extra in theirs]
    ours, problems = _translate(model, theirs, dialect, replace_head, dropped)
    problems += [f"unexpected: {_describe(found)}" for found in theirs.values()]
    if problems:
        raise WeightsError(
            f"{len(problems)} tensors do not fit {model.spec.name} with {model.num_classes} classes:\n  "
            + "\n  ".join(problems)
            + _hint(problems, name, model)
        )
    model.load_state_dict(ours, strict=False)
    return dropped


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
    theirs: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        their_names = dialect.names(name, model)
        if their_names:
            parts = dialect.split(name, _swap_box_order(name, tensor))
            theirs |= {part: value.clone() for part, value in zip(their_names, parts, strict=True)}
    return theirs | {name: torch.ones(shape) for name, shape in dialect.unused(model).items()}


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
    if any(map(is_tensorflow, state)):
        return "tensorflow"
    if any(map(is_zylo, state)):
        return "zylo"
    if any("fpn." in name or "class_net." in name for name in state):
        return "effdet"
    raise WeightsError(
        "these are not weights of effdet, zylo117 or TensorFlow's EfficientDet; the first names are "
        + ", ".join(list(state)[:4])
    )


def _translate(
    model: EfficientDet, theirs: dict[str, Found], dialect: Dialect, replace_head: bool, dropped: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict made from theirs, and every mismatch; what is used is removed from `theirs`."""
    state, biases = model.state_dict(), redundant_biases(model)
    # All or none: a state that has some of these biases has lost the others.
    has_biases = any(part in theirs for bias in biases for part in dialect.names(bias, model))
    ours, problems = {}, []
    for name, tensor in state.items():
        their_names = dialect.names(name, model)
        expected = dialect.split(name, _swap_box_order(name, tensor))
        found = [theirs.pop(part, None) for part in their_names]
        if name in biases and not has_biases:
            ours[name] = torch.zeros_like(tensor)
            continue
        if name.endswith("num_batches_tracked") and None in found:
            continue
        wrong = _problems(their_names, expected, found)
        if replace_head and name.startswith(CLASS_LAYER) and wrong and None not in found:
            dropped += [_describe(part) for part in found if part is not None]
        elif wrong:
            problems += wrong
        elif their_names:
            parts = [part.tensor for part in found if part is not None]
            ours[name] = _swap_box_order(name, dialect.join(name, parts))
    for bias in biases.keys() - state.keys() if has_biases else ():
        problems += _fold(bias, biases[bias], model, theirs, dialect, ours)
    return ours, problems


def _problems(names: tuple[str, ...], expected: list[Tensor], found: list[Found | None]) -> list[str]:
    problems = []
    for name, want, have in zip(names, expected, found, strict=False):
        if have is None:
            problems.append(f"missing: {name} {tuple(want.shape)}")
        elif have.tensor.shape != want.shape:
            problems.append(f"shape: {_describe(have)}, the model has {tuple(want.shape)}")
    return problems


def _fold(
    bias: str, means: list[str], model: EfficientDet,
    theirs: dict[str, Found], dialect: Dialect, ours: dict[str, Tensor],
) -> list[str]:  # fmt: skip
    """Subtract a bias that the network lacks from the running means after it: (x + b) - m = x - (m - b)."""
    (name,) = dialect.names(bias, model)
    found = theirs.pop(name, None)
    shape = model.state_dict()[means[0]].shape
    if found is None:
        return [f"missing: {name} {tuple(shape)}"]
    if found.tensor.shape != shape:
        return [f"shape: {_describe(found)}, the model has {tuple(shape)}"]
    for mean in means:
        if mean in ours:
            ours[mean] = ours[mean] - found.tensor.to(ours[mean])
    return []


def _swap_box_order(name: str, tensor: Tensor) -> Tensor:
    """Permute the output channels of the box head's last convolution; leave every other tensor alone."""
    if not name.startswith("box_head.predict.pointwise."):
        return tensor
    per_anchor = tensor.reshape(-1, 4, *tensor.shape[1:])
    return per_anchor[:, list(_SWAP_XY)].reshape(tensor.shape)


def _describe(found: Found) -> str:
    return f"{found.name} {tuple(found.tensor.shape)}"


def _hint(problems: list[str], source: str, model: EfficientDet) -> str:
    """What to do, if only the number of classes differs."""
    layer = {name for leaf in ("weight", "bias") for name in DIALECTS[source].names(CLASS_LAYER + leaf, model)}
    if all(problem.startswith("shape: ") and any(name in problem for name in layer) for problem in problems):
        return "\nOnly the number of classes differs: replace_head=True keeps the model's own class layer"
    return ""
