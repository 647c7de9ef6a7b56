"""EfficientNet weights with batch norms folded into the convolutions, unfolded again so that training can start there.

A folded convolution is y = w * x + b. With a batch norm after it the function is the same if the norm's statistics are
those of w * x over real images, gamma = sqrt(variance + epsilon) and beta = b + mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor, nn

from efficientdet.errors import WeightsError, as_error
from efficientdet.network.efficientnet import EfficientNet
from efficientdet.network.layers import conv_norm_pairs
from efficientdet.weights.checkpoint import check_finite, mismatches, refuse_mismatches, shapes_of

# Layers of the classifier in such files, which a detector does not have.
UNUSED = ("conv_head.weight", "conv_head.bias")
# Bytes of the arrays in memory; those of B7 have 0.25 GB.
_LARGEST = 1 << 30


def load_folded_backbone(backbone: EfficientNet, path: str | Path, batches: Iterable[Tensor], source: str = "") -> None:
    """Load folded convolutions from a `.npz` file, and set the batch norms by real images.

    Args:
        backbone: changed in place; in evaluation mode its function becomes exactly the folded one.
        path: a `.npz` file of arrays `<layer>.weight` (OIHW) and `<layer>.bias`, named as the layers of this backbone.
        batches: (B, 3, H, W) normalized images, a few hundred in all, for the statistics.
        source: where the images come from, for the message.

    Raises:
        WeightsError: the file is missing or damaged; a layer is missing, unexpected or of another shape (all are
            listed), or has NaN or infinite values; or there are no images.
    """
    arrays = _read(Path(path))
    names = {module: name for name, module in backbone.named_modules()}
    pairs = {names[conv]: (conv, norm) for conv, norm in conv_norm_pairs(backbone)}
    expected = {f"{name}.weight": tuple(conv.weight.shape) for name, (conv, _) in pairs.items()}
    expected |= {f"{name}.bias": (norm.num_features,) for name, (_, norm) in pairs.items()}
    problems = mismatches(expected, shapes_of({name: x for name, x in arrays.items() if name not in UNUSED}))
    refuse_mismatches(problems, f"{path}: does not fit the backbone")
    check_finite({name: torch.from_numpy(array) for name, array in arrays.items()}, str(path))
    with torch.no_grad():
        for name, (conv, norm) in pairs.items():
            conv.weight.copy_(torch.from_numpy(arrays[f"{name}.weight"]))
            norm.running_mean.zero_()  # type: ignore[union-attr]
            norm.running_var.fill_(1.0)  # type: ignore[union-attr]
            norm.weight.fill_((1.0 + norm.eps) ** 0.5)
            norm.bias.copy_(torch.from_numpy(arrays[f"{name}.bias"]))
    _take_statistics(backbone, [norm for _, norm in pairs.values()], batches, source)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such weights file")
    with as_error(WeightsError, f"{path}: not a .npz file, or a damaged one"), path.open("rb") as file:
        size = sum(entry.file_size for entry in ZipFile(file).infolist())
        if size > _LARGEST:
            raise ValueError(f"it unpacks to {size:,} bytes, more than {_LARGEST:,}")
        file.seek(0)
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, NpzFile):
            raise ValueError("one array, without names")
        return {name: np.asarray(arrays[name], dtype=np.float32) for name in arrays.files}


def _take_statistics(
    backbone: EfficientNet, norms: list[nn.BatchNorm2d], batches: Iterable[Tensor], source: str
) -> None:
    """Measure mean and variance of each norm's input in one pass over the images, and set the norms to them."""
    sums = {norm: (torch.zeros(norm.num_features, dtype=torch.float64),) * 2 for norm in norms}
    counts = dict.fromkeys(norms, 0)

    def collect(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        first, second = sums[norm]  # type: ignore[index]
        sums[norm] = (first + x.sum((0, 2, 3)).cpu(), second + x.square().sum((0, 2, 3)).cpu())  # type: ignore[index]
        counts[norm] += x.shape[0] * x.shape[2] * x.shape[3]  # type: ignore[index]

    handles = [norm.register_forward_pre_hook(collect) for norm in norms]
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                backbone(batch)
    finally:
        for handle in handles:
            handle.remove()
        backbone.train(was_training)
    if not counts[norms[0]]:
        raise WeightsError(f"no images{' in ' + source if source else ''} to take the statistics from")
    with torch.no_grad():
        for norm in norms:
            mean = sums[norm][0] / counts[norm]
            variance = (sums[norm][1] / counts[norm] - mean.square()).clamp(min=0)
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.add_(mean)
