"""Settings of a training run: one typed object that refuses contradictions."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from efficientdet.data.augment import Augmentation
from efficientdet.errors import SettingError, unknown_name
from efficientdet.training.losses import LossSettings

OPTIMIZERS = ("sgd", "adamw")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BATCH_NORMS = ("auto", "train", "frozen")
# The settings that need not be whole numbers.
FRACTIONS = ("warmup_epochs", "backbone_rate", "gradient_clip", "weight_decay")
# Batch statistics of a pretrained backbone are too rough below this many pictures a device.
SMALLEST_BATCH_FOR_STATISTICS = 32
# The paper's jitter of 0.1-2.0 pays in long runs; at 30 epochs 0.5-1.5 is better (appendix: 35.3 against 34.6 AP).
LONG_RUN_EPOCHS = 150


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's (section 5.1) where a short run on little data allows.

    Attributes:
        epochs: passes over the training split.
        batch_size: pictures a step on each device.
        accumulate: batches whose gradients are added before the weights move, as one batch of so many times the size.
        image_size: side of the square input; None for the model's own.
        learning_rate: peak; None derives it from the batch: 0.08 per 64 pictures for `sgd`, 0.001 per 16 for `adamw`
            (by the square root).
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        weight_decay: on convolution kernels only; None for 4e-5 (`sgd`) or 0.01 (`adamw`).
        warmup_epochs: the learning rate grows from a tenth in this time, then falls as a cosine to nothing; at most
            half the run.
        gradient_clip: largest norm of the whole gradient; 0 for no limit.
        ema_decay: of the averaged weights that are evaluated and saved; ramps up from the first step. 0 for none.
        scale_jitter: see `Augmentation`; None for 0.1-2.0 in runs of 150 epochs or more, else 0.5-1.5.
        flip: probability of a horizontal flip.
        precision: `fp32`, `bf16` or `fp16` (GPU only) autocast; `auto` is bf16 where the device
            has it, else fp16 on NVIDIA's GPUs and fp32 elsewhere.
        batch_norm: `frozen` keeps the backbone's running statistics, `train` uses the batch's; `auto` freezes those of
            a backbone that comes with weights when the batch is under 32.
        backbone_rate: factor on the backbone's learning rate.
        layer_decay: each stage of the backbone learns this much slower than the one above it; 1 for all alike.
        frozen_stages: the stem and so many stages of the backbone (7 of an EfficientNet, 4 of a ResNet) do not learn.
        drop_path: stochastic depth of the backbone; an EfficientNet's only.
        gradient_checkpointing: keep less of the forward pass and compute it again in the backward pass: less memory,
            about 40 % more time, the same result.
        seed: of weights, order and augmentation.
        workers: loader processes; None for none on a CPU, else up to 8.
        cache: keep decoded pictures in memory; None decides by the free memory.
        evaluate_every: epochs between evaluations on the validation split; the last epoch always has one.
        save_every: steps between saves of the state from which a run resumes; each epoch's end saves too.
        allow_no_boxes: train although the training split holds no box at all.
        device: `auto`, `cpu`, `cuda`, `mps`.
        devices: how many.
        loss: weights of the losses.
    """

    epochs: int = 50
    batch_size: int = 8
    accumulate: int = 1
    image_size: int | None = None
    learning_rate: float | None = None
    optimizer: str = "sgd"
    weight_decay: float | None = None
    warmup_epochs: float = 1.0
    gradient_clip: float = 10.0
    ema_decay: float = 0.9998
    scale_jitter: tuple[float, float] | None = None
    flip: float = 0.5
    precision: str = "auto"
    batch_norm: str = "auto"
    backbone_rate: float = 1.0
    layer_decay: float = 1.0
    frozen_stages: int = 0
    drop_path: float = 0.0
    gradient_checkpointing: bool = False
    seed: int = 0
    workers: int | None = None
    cache: bool | None = None
    evaluate_every: int = 1
    save_every: int = 200
    allow_no_boxes: bool = False
    device: str = "auto"
    devices: int = 1
    loss: LossSettings = LossSettings()

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            SettingError: a number is out of range; names the setting and its value.
            UnknownNameError: a choice is not known.
        """
        at_least = {
            "epochs": 1, "batch_size": 1, "accumulate": 1, "evaluate_every": 1, "save_every": 1, "devices": 1,
            "warmup_epochs": 0, "frozen_stages": 0, "seed": 0, "backbone_rate": 0, "gradient_clip": 0,
            "image_size": 32, "workers": 0, "weight_decay": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is None and getattr(type(self), name, 0) is None:
                continue
            _check_number(name, value, is_whole=name not in FRACTIONS)
            if not value >= least:
                raise SettingError(f"{name} is {value}; it must be at least {least}")
        if self.learning_rate is not None:
            _check_number("learning_rate", self.learning_rate, is_whole=False)
            if not self.learning_rate > 0:
                raise SettingError(f"learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("ema_decay", "drop_path"):
            _check_number(name, getattr(self, name), is_whole=False)
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        _check_number("layer_decay", self.layer_decay, is_whole=False)
        if not 0 < self.layer_decay <= 1:
            raise SettingError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1")
        if self.frozen_stages > 7:
            raise SettingError(f"frozen_stages is {self.frozen_stages}; no backbone has more than 7 stages")
        if self.seed >= 2**32:
            raise SettingError(f"seed is {self.seed}; it must be below 2**32")
        for name, known in (
            ("optimizer", OPTIMIZERS), ("precision", PRECISIONS), ("batch_norm", BATCH_NORMS), ("device", DEVICES),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        if self.precision == "fp16" and self.device == "cpu":
            raise SettingError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """The augmentation that these settings mean."""
        jitter = self.scale_jitter or ((0.1, 2.0) if self.epochs >= LONG_RUN_EPOCHS else (0.5, 1.5))
        return Augmentation(jitter, self.flip)

    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up, from the pictures that one move of the weights sees."""
        if self.learning_rate is not None:
            return self.learning_rate
        pictures = self.batch_size * self.accumulate * self.devices
        if self.optimizer == "sgd":
            return 0.08 * pictures / 64
        return 1e-3 * math.sqrt(pictures / 16)

    def decay(self) -> float:
        """The weight decay."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 4e-5 if self.optimizer == "sgd" else 1e-2

    def freezes_batch_norm(self, is_pretrained: bool) -> bool:
        """Whether the backbone's batch norms keep their running statistics."""
        if self.batch_norm == "auto":
            return is_pretrained and self.batch_size < SMALLEST_BATCH_FOR_STATISTICS
        return self.batch_norm == "frozen"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return dataclasses.asdict(self)


def _check_number(name: str, value: Any, is_whole: bool) -> None:
    kinds = int if is_whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
        raise SettingError(f"{name} is {value!r}; it must be a {'whole' if is_whole else 'finite'} number")
