"""Fine-tuning under the rounding of int8, so that a quantised network loses less (Jacob et al. 2018, section 3).

Each convolution sees its input and its weights as 8 bits would hold them, while gradients pass through the rounding
unchanged. What comes out is an ordinary network with ordinary weights, which `exporting.quantise` takes as any other.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from efficientdet.data.dataset import DetectionDataset, EpochBatches, collate, read_split
from efficientdet.data.records import Records
from efficientdet.errors import DataError, SettingError
from efficientdet.inference.detector import Detector, load
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.config import TrainConfig
from efficientdet.training.losses import detection_loss
from efficientdet.training.schedule import build_optimiser, rate_factor
from efficientdet.weights.checkpoint import save_checkpoint

# Whole numbers that 8 bits hold, symmetric around 0 or from 0 on.
SIGNED, UNSIGNED = (-127, 127), (0, 255)
CALIBRATION_PICTURES = 32


def finetune_quantised(
    detector: Detector | str | Path,
    data: str | Path | Records,
    *,
    epochs: int = 2,
    out: str | Path | None = None,
    batch_size: int = 8,
    learning_rate: float = 2e-4,
    seed: int = 0,
    most_steps: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Detector:
    """Train a trained detector a little longer, under the rounding of int8.

    Batch norms keep their statistics, as they will be part of the convolutions.

    Args:
        detector: a detector, which is not changed, or what `load` takes.
        data: the data set that it was trained on, whose split `train` is used; or records.
        epochs: passes over it.
        out: write the result to this `.safetensors` too.
        batch_size: pictures a step.
        learning_rate: peak of AdamW; it falls as a cosine.
        seed: of order and augmentation.
        most_steps: stop after so many; None for all.
        progress: called with (steps done, steps in all, loss).

    Returns:
        The fine-tuned detector, in float32: quantise it next.

    Raises:
        SettingError: a setting is out of range.
        DataError: the data set is at fault, or has other classes than the detector.
    """
    config = TrainConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, optimiser="adamw", seed=seed,
        scale_jitter=(0.75, 1.25),
    )  # fmt: skip
    if most_steps is not None and most_steps < 1:
        raise SettingError(f"most_steps is {most_steps}; it must be at least 1")
    detector = detector if isinstance(detector, Detector) else load(detector)
    records = data if isinstance(data, Records) else read_split(data, "train")
    if records.class_names != detector.class_names:
        raise DataError(
            f"{records.source}: its classes {list(records.class_names)} are not the detector's "
            f"{list(detector.class_names)}"
        )
    model = copy.deepcopy(detector.model)
    dataset = DetectionDataset(
        records, detector.image_size, detector.info.preprocessing, config.augmentation(), seed, cache=False
    )
    with rounded(model, dataset):
        _train(model, dataset, config, most_steps, progress)
    about = {**detector.info.about, "note": "fine-tuned under the rounding of int8"}
    info = dataclasses.replace(detector.info, metrics={}, about=about)
    if out is not None:
        save_checkpoint(out, model.state_dict(), info)
    return Detector(model, info, device=detector.device, image_size=detector.image_size)


def _train(
    model: EfficientDet, dataset: DetectionDataset, config: TrainConfig, most_steps: int | None,
    progress: Callable[[int, int, float], None] | None,
) -> None:  # fmt: skip
    batches = EpochBatches(dataset.records, config.batch_size, config.seed)
    total = min(len(batches) * config.epochs, most_steps or len(batches) * config.epochs)
    model.eval().requires_grad_(True)
    optimiser = build_optimiser(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_factor(step, min(total // 10, 100), total)
    )
    device = next(model.parameters()).device
    anchors = model.anchors(dataset.size)
    for step, keys in zip(range(total), _keys(batches, config.epochs), strict=False):
        batch = collate([dataset[key] for key in keys])
        images = batch.images.to(device, memory_format=torch.channels_last)
        boxes, labels = ([part.to(device) for part in parts] for parts in (batch.boxes_xyxy, batch.labels))
        class_logits, box_deltas = model(images)
        loss = detection_loss(class_logits, box_deltas, anchors, boxes, labels, config.loss).total
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        if bool(norm.isfinite()):
            optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, total, float(loss.detach()))


def _keys(batches: EpochBatches, epochs: int) -> Iterator[list[tuple[int, int]]]:
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        yield from batches


@contextlib.contextmanager
def rounded(model: EfficientDet, dataset: DetectionDataset) -> Iterator[None]:
    """Let a network's convolutions compute with inputs and weights as 8 bits hold them; as before afterwards.

    Args:
        model: the network.
        dataset: the first, evenly spread pictures of it show the ranges of the inputs.
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    ranges = {conv: InputRange() for conv in convs}
    try:
        for conv, inputs in ranges.items():
            conv._conv_forward = types.MethodType(_watching(inputs), conv)  # type: ignore[method-assign]
        model.eval()
        device = next(model.parameters()).device
        step = max(1, len(dataset) // CALIBRATION_PICTURES)
        with torch.no_grad():
            for place in range(0, len(dataset), step):
                model(dataset[place].image[None].to(device, memory_format=torch.channels_last))
        for conv, inputs in ranges.items():
            conv._conv_forward = types.MethodType(_rounding(inputs), conv)  # type: ignore[method-assign]
        yield
    finally:
        for conv in convs:
            vars(conv).pop("_conv_forward", None)


class InputRange:
    """What numbers a convolution is given.

    Attributes:
        limit: the mean over pictures of the largest magnitude.
        is_signed: whether any was below 0.
    """

    def __init__(self) -> None:
        self.limit = 0.0
        self.is_signed = False
        self._seen = 0

    def add(self, x: Tensor) -> None:
        """Take a picture into account."""
        self._seen += 1
        self.limit += (float(x.abs().amax()) - self.limit) / self._seen
        self.is_signed = self.is_signed or bool(x.amin() < 0)

    def round(self, x: Tensor) -> Tensor:
        """The nearest numbers that 8 bits hold; gradients pass where `x` is in the range."""
        low, high = SIGNED if self.is_signed else UNSIGNED
        scale = max(self.limit, 1e-12) / high
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, 0, low, high)


def round_weights(weight: Tensor) -> Tensor:
    """Each output channel's weights, in whole 127ths of its largest: (outputs, ...) to the same shape.

    The batch norm behind only scales a channel, so these are also the roundings of the folded weights.
    """
    scales = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-12) / SIGNED[1]
    zeros = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, *SIGNED)


def _watching(inputs: InputRange) -> Callable[..., Tensor]:
    def forward(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inputs.add(x)
        out: Tensor = type(self)._conv_forward(self, x, weight, bias)
        return out

    return forward


def _rounding(inputs: InputRange) -> Callable[..., Tensor]:
    def forward(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = type(self)._conv_forward(self, inputs.round(x), round_weights(weight), bias)
        return out

    return forward
