"""What a run starts from: a whole detector, or a backbone alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from efficientdet.data.records import Records
from efficientdet.errors import WeightsError
from efficientdet.images import Preprocessing, prepare, read
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import load_checkpoint
from efficientdet.weights.folded import load_folded_backbone
from efficientdet.weights.names import find_weights

# Pictures from which the batch norms of folded weights take their statistics.
STATISTICS_PICTURES = 256
CLASS_LAYER = "class_head.predict.pointwise."


def start_from(
    network: EfficientDet, weights: str | Path, class_names: tuple[str, ...], console: Console
) -> Preprocessing:
    """Copy a detector's weights and its shapes of anchors into a network of the same kind.

    Where the classes differ in name or order, the last layer of the class head starts afresh, and what is dropped is
    printed.

    Args:
        network: changed in place.
        weights: what `find_weights` takes.
        class_names: of the new data set, by label.
        console: for the report.

    Returns:
        The preprocessing that those weights were trained with.

    Raises:
        WeightsError: the two differ in more than the classes; lists the tensors.
    """
    source, info = load_checkpoint(find_weights(weights))
    state, own = source.state_dict(), network.state_dict()
    dropped = [] if info.class_names == class_names else [key for key in state if key.startswith(CLASS_LAYER)]
    shapes, own_shapes = ({key: value.shape for key, value in part.items()} for part in (state, own))
    problems = [key for key in {*state, *own} - {*dropped} if shapes.get(key) != own_shapes.get(key)]
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise WeightsError(f"{weights}: {source.spec.name} does not fit {network.spec.name}; differing:\n  {listed}")
    if dropped:
        console.print(f"{weights}: its classes differ, so these start afresh: {', '.join(dropped)}")
    network.load_state_dict({key: value for key, value in state.items() if key not in dropped}, strict=False)
    network.spec = dataclasses.replace(network.spec, aspects=source.spec.aspects)
    return info.preprocessing


def start_backbone_from(
    network: EfficientDet, weights: str | Path, records: Records, size: int, preprocessing: Preprocessing
) -> None:
    """Start the backbone alone: from another detector with the same one, or from a `.npz` of folded ImageNet weights.

    Args:
        network: changed in place.
        weights: a `.npz`, or what `find_weights` takes.
        records: pictures for the statistics that folded weights need.
        size: side of the square input.
        preprocessing: of those pictures.

    Raises:
        WeightsError: the weights do not fit the backbone; lists what differs.
    """
    if Path(weights).suffix != ".npz":
        source, _ = load_checkpoint(find_weights(weights))
        if source.spec.backbone != network.spec.backbone:
            raise WeightsError(f"{weights}: its backbone is {source.spec.backbone}, not {network.spec.backbone}")
        network.backbone.load_state_dict(source.backbone.state_dict())
        return

    def batches() -> Iterator[Tensor]:
        step = max(1, len(records) // STATISTICS_PICTURES)
        for record in records.images[::step]:
            yield torch.from_numpy(prepare(read(record.path), (size, size), preprocessing)[0])[None]

    load_folded_backbone(network.backbone, weights, batches(), str(records.source))
