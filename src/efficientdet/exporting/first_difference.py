"""Which layer of an exported file is the first to differ from the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.formats import OpenedFile
from efficientdet.inference.engines.fold import fold
from efficientdet.network.efficientdet import EfficientDet


def first_difference(file: OpenedFile, model: EfficientDet, batch: Batch, tolerance: float) -> str | None:
    """Name the first convolution whose output differs, in the order in which the file runs them.

    Args:
        file: the file.
        model: the network that it was made from.
        batch: images on which their outputs differ.
        tolerance: a layer differs where max |difference| > tolerance * max(1, max |output|).

    Returns:
        The layer by its name in the network, with its level where it runs on each; None where no convolution tells.
    """
    folded = fold(model).cpu().float()
    names: dict[nn.Module, str] = {
        module: name for name, module in folded.named_modules() if isinstance(module, nn.Conv2d)
    }
    expected = _outputs(folded, names, batch.images)
    calls: dict[str, int] = defaultdict(int)
    for name, values in file.convolutions(batch):
        call, wanted = calls[name], expected[name]
        calls[name] += 1
        if call < len(wanted) and _differs(values, wanted[call], tolerance):
            low, high = model.spec.levels
            return f"{name} (on P{low + call})" if len(wanted) == high - low + 1 else name
    return None


def _differs(values: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two outputs differ by more than the tolerance, are of different shapes, or not finite."""
    if values.shape != wanted.shape:
        return True
    return not float((values - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def _outputs(model: nn.Module, names: Mapping[nn.Module, str], images: Tensor) -> dict[str, list[Tensor]]:
    """What each convolution gives in each of its calls."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        if module in names:
            outputs[names[module]].append(output.clone())  # a copy: the activation behind works in place

    with torch.no_grad(), register_module_forward_hook(keep):
        model(images)
    return outputs
