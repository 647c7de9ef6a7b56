"""Which layer of an exported file is the first to differ from the network."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.formats import ExportedFile
from efficientdet.inference.engines.fold import fold
from efficientdet.network.efficientdet import EfficientDet


def first_departure(file: ExportedFile, model: EfficientDet, batch: Batch, tolerance: float) -> str:
    """Name the first convolution whose output differs, in the order in which the file runs them.

    Args:
        file: the file.
        model: the network that it was made from.
        batch: pictures on which their outputs differ.
        tolerance: a layer departs where max |difference| > tolerance * max(1, max |output|).

    Returns:
        The layer by its name in the network, with its level where it runs on each; or, where no convolution tells, the
        first level of an output that differs.
    """
    folded = fold(model).cpu().float()
    canonical = _canonical_names(folded)
    recorder = _Recorder(_names_by_weight(folded))
    with torch.no_grad(), recorder:
        folded(batch.images)
    expected: dict[str, list[Tensor]] = {}
    for name, values in recorder.outputs:
        expected.setdefault(name, []).append(values)
    calls: Counter[str] = Counter()
    for raw_name, values in file.convolutions(batch):
        name = canonical.get(raw_name, raw_name)
        wanted = expected.get(name, [])
        call = calls[name]
        calls[name] += 1
        if call < len(wanted) and departs(values, wanted[call], tolerance):
            return _with_level(raw_name, call, len(wanted), model)
    return _first_level(file, model, batch, tolerance)


def departs(values: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two outputs differ by more than the tolerance, or are of different shapes, or not finite."""
    if values.shape != wanted.shape:
        return True
    return not float((values - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def _names_by_weight(model: nn.Module) -> dict[int, str]:
    """The id of each convolution's weight to its first name: the levels of a head share some."""
    names: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            names.setdefault(id(module.weight), name)
    return names


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every convolution to its first one."""
    first = _names_by_weight(model)
    return {
        name: first[id(module.weight)]
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Conv2d)
    }


class _Recorder(TorchFunctionMode):
    """Keeps name and output of each convolution that runs, told by its weight."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.outputs: list[tuple[str, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function."""
        result = func(*args, **(kwargs or {}))
        if func is functional.conv2d:
            # A copy, since the activation behind works in place.
            self.outputs.append((self.names[id(args[1])], result.clone()))
        return result


def _with_level(name: str, call: int, calls: int, model: EfficientDet) -> str:
    low, high = model.spec.levels
    return f"{name} (on P{low + call})" if calls == high - low + 1 else name


def _first_level(file: ExportedFile, model: EfficientDet, batch: Batch, tolerance: float) -> str:
    """The first level of an output that differs."""
    device = next(model.parameters()).device
    with torch.no_grad():
        expected = model(batch.images.to(device))
    for output, values, levels in zip(("class_logits", "box_deltas"), file.raw(batch), expected, strict=True):
        parts = torch.split(values, [level.shape[1] for level in levels], 1)
        for number, (part, level) in enumerate(zip(parts, levels, strict=True), model.spec.levels[0]):
            if departs(part, level.cpu(), tolerance):
                return f"{output} of P{number}"
    return "no layer by itself: the differences of many add up"
