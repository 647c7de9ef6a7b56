"""The weights that a run starts from: those of a detector, or of a backbone alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from efficientdet.data.records import Records
from efficientdet.errors import SettingError, WeightsError
from efficientdet.images.letterbox import Preprocessing, letterbox
from efficientdet.images.read import read
from efficientdet.network.efficientdet import CLASS_LAYER, EfficientDet
from efficientdet.network.efficientnet import EfficientNet
from efficientdet.network.resnet import ResNet
from efficientdet.training.keep_classes import extend_class_layer
from efficientdet.weights.checkpoint import check_finite, fit_state, load_checkpoint
from efficientdet.weights.convert import read_state
from efficientdet.weights.create import copy_weights
from efficientdet.weights.foreign import unwrap
from efficientdet.weights.imagenet_backbone import load_folded_backbone
from efficientdet.weights.names import find_weights
from efficientdet.weights.remap.layout import unwrapped

# Images from which the batch norms of folded weights take their statistics.
STATISTICS_IMAGES = 256
# Suffixes of torchvision's weights.
TORCHVISION_SUFFIXES = (".pth", ".pt")


def start_from(
    network: EfficientDet, weights: str | Path, class_names: tuple[str, ...], console: Console,
    keeps_classes: bool = False,
) -> Preprocessing:  # fmt: skip
    """Copy a detector's weights and anchor shapes into a network of the same kind.

    If its classes differ in name or order, the last layer of the class head starts afresh, and a line says so.

    Args:
        network: changed in place.
        weights: what `find_weights` takes.
        class_names: of the dataset, by label.
        console: where the line is printed.
        keeps_classes: the first classes are the detector's, whose part of that layer is kept.

    Returns:
        The preprocessing that the weights were trained with.

    Raises:
        WeightsError: the networks differ in more than the classes; lists the tensors.
        SettingError: they differ in the number of aspects.
    """
    source, info = load_checkpoint(find_weights(weights))
    if len(source.spec.aspects) != len(network.spec.aspects):
        raise SettingError(
            f"aspects has {len(network.spec.aspects)} values, and the heads of {weights} have outputs for "
            f"{len(source.spec.aspects)}; give {len(source.spec.aspects)}, or start from its backbone alone "
            "(--backbone-weights)"
        )
    has_same_classes = info.class_names == class_names
    copy_weights(network, source, str(weights), with_class_layer=has_same_classes)
    if keeps_classes:
        extend_class_layer(network, source)
    elif not has_same_classes:
        layer = [key for key in network.state_dict() if key.startswith(CLASS_LAYER)]
        console.print(f"{weights}: its classes differ, so these start afresh: {', '.join(layer)}")
    return info.preprocessing


def start_backbone_from(
    network: EfficientDet, weights: str | Path, records: Records, size: int, preprocessing: Preprocessing
) -> list[str]:
    """Copy the weights of a backbone: those of a detector with the same one, or ImageNet weights.

    Args:
        network: changed in place.
        weights: what `find_weights` takes; or a `.npz` of folded weights for an EfficientNet, torchvision's `.pth` for
            a ResNet.
        records: images from which folded weights take the statistics of their batch norms.
        size: side of the square input, in pixels.
        preprocessing: of those images.

    Returns:
        Names of the file's tensors that a detector does not need: the classifier's.

    Raises:
        WeightsError: the weights do not fit the backbone; lists what differs.
    """
    suffix, backbone = Path(weights).suffix.lower(), network.backbone
    if suffix in TORCHVISION_SUFFIXES and isinstance(backbone, ResNet):
        return _load_torchvision(backbone, Path(weights), network.spec.backbone)
    if suffix != ".npz":
        source, _ = load_checkpoint(find_weights(weights))
        if source.spec.backbone != network.spec.backbone:
            raise WeightsError(f"{weights}: its backbone is {source.spec.backbone}, not {network.spec.backbone}")
        backbone.load_state_dict(source.backbone.state_dict())
        return []
    if not isinstance(backbone, EfficientNet):
        raise WeightsError(f"{weights}: folded weights of an EfficientNet; the backbone is {network.spec.backbone}")

    def batches() -> Iterator[Tensor]:
        step = max(1, len(records) // STATISTICS_IMAGES)
        for record in records.images[::step]:
            yield torch.from_numpy(letterbox(read(record.path), (size, size), preprocessing)[0])[None]

    load_folded_backbone(backbone, weights, batches(), str(records.source))
    return []


def _load_torchvision(backbone: ResNet, path: Path, name: str) -> list[str]:
    """Copy torchvision's weights, of which old files lack the counters; returns the names of the classifier's."""
    theirs = {bare: found.tensor for bare, found in unwrapped(unwrap(read_state(path))).items()}
    dropped = [key for key in theirs if key.startswith("fc.")]
    counters = {key: tensor for key, tensor in backbone.state_dict().items() if key.endswith("num_batches_tracked")}
    state = counters | {key: tensor for key, tensor in theirs.items() if key not in dropped}
    fit_state(backbone, state, str(path), name)
    check_finite(state, str(path))
    backbone.load_state_dict(state)
    return dropped
