"""Which layer of an exported file is the first to differ from the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.formats import OpenedFile
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.metadata import RAW_OUTPUTS
from efficientdet.network.efficientdet import EfficientDet


def first_difference(file: OpenedFile, model: EfficientDet, batch: Batch, tolerance: float) -> str:
    """Name the first convolution whose output differs, in the order in which the file runs them.

    Args:
        file: the file.
        model: the network that it was made from.
        batch: images on which their outputs differ.
        tolerance: a layer differs where max |difference| > tolerance * max(1, max |output|).

    Returns:
        The layer by its name in the network, with its level where it runs on each; or, where no convolution tells, the
        first level of an output that differs.
    """
    folded = fold(model).cpu().float()
    # Every name of every convolution to its first one: the levels of a head share some.
    convs = [(name, module) for name, module in folded.named_modules(remove_duplicate=False) if _is_conv(module)]
    names: dict[int, str] = {}
    for name, module in convs:
        names.setdefault(id(module), name)
    first_names = {name: names[id(module)] for name, module in convs}
    expected = _outputs(folded, names, batch.images)
    calls: dict[str, int] = defaultdict(int)
    for file_name, values in file.convolutions(batch):
        name = first_names.get(file_name, file_name)
        call, wanted = calls[name], expected[name]
        calls[name] += 1
        if call < len(wanted) and differs(values, wanted[call], tolerance):
            low, high = model.spec.levels
            return f"{file_name} (on P{low + call})" if len(wanted) == high - low + 1 else file_name
    found = (name for name, values, wanted in by_level(file, model, batch) if differs(values, wanted, tolerance))
    return next(found, "no single layer: small differences of many add up")


def differs(values: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two outputs differ by more than the tolerance, are of different shapes, or not finite."""
    if values.shape != wanted.shape:
        return True
    return not float((values - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _outputs(model: nn.Module, names: dict[int, str], images: Tensor) -> dict[str, list[Tensor]]:
    """What each convolution gives in each of its calls; `names` are by the modules' ids."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        if id(module) in names:
            outputs[names[id(module)]].append(output.clone())  # a copy: the activation behind works in place

    # One hook for all modules: those of a folded head share what they were copied with.
    with torch.no_grad(), register_module_forward_hook(keep):
        model(images)
    return outputs


def by_level(file: OpenedFile, model: EfficientDet, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each raw output of each level, finest first: such as `class_logits of P3`, the file's and the network's."""
    with torch.no_grad():
        expected = model(batch.images.to(next(model.parameters()).device))
    for output, values, levels in zip(RAW_OUTPUTS, file.raw(batch), expected, strict=True):
        parts = torch.split(values, [level.shape[1] for level in levels], 1)
        for number, (part, level) in enumerate(zip(parts, levels, strict=True), model.spec.levels[0]):
            yield f"{output} of P{number}", part, level.cpu()
