"""The settings of a training run: defaults, ranges and descriptions. Imports neither torch nor numpy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from efficientdet.errors import SettingError, find_name
from efficientdet.family import aspect_factors
from efficientdet.settings import Settings, kinds, setting

# Batch statistics of a pretrained backbone are too rough below this many images.
SMALLEST_BATCH_FOR_STATISTICS = 4
# The paper's jitter of 0.1-2.0 pays in long runs; at 30 epochs 0.5-1.5 is better (appendix: 35.3 against 34.6 AP).
LONG_RUN_EPOCHS, LONG_JITTER, JITTER = 150, (0.1, 2.0), (0.5, 1.5)
# Settings of the losses that matter for one kind of box loss alone.
OF_BOX_LOSS = {"huber": ("delta", "box_weight", "skips_zero_targets"), "giou": ("giou_weight",)}
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
# Settings that name a file.
FILES = ("weights", "teacher", "backbone_weights", "feature_network")


@dataclass(frozen=True)
class LossSettings(Settings):
    """Weights and shapes of the losses; the defaults are the reference's (google/automl tf2/train_lib.py)."""

    alpha: float = setting(0.25, "Weight of objects in the focal loss; background has 1 - alpha.", minimum=0, maximum=1)
    gamma: float = setting(1.5, "How strongly the focal loss discounts well-classified anchors.", minimum=0)
    label_smoothing: float = setting(0.0, "How far class targets move towards 0.5.", minimum=0, below=1)
    delta: float = setting(0.1, "Error at which the Huber loss turns from square to linear.", above=0)
    box_weight: float = setting(50.0, "Weight of the Huber box loss in the total.", minimum=0)
    giou_weight: float = setting(2.0, "Weight of the GIoU box loss in the total.", minimum=0)
    skips_zero_targets: bool = setting(
        True, "Leave out of the box loss what should be exactly 0, as the reference does."
    )


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How to train. The defaults are the recipe `modern`, for small datasets and minutes; see `recipes`."""

    weights: str | Path | None = setting(
        None,
        "Detector to start from: bundled model, checkpoint, released model, or hf://owner/repo. If its classes differ "
        "from the dataset's, the class layer starts afresh.",
        flag="-w",
    )
    keep_classes: bool = setting(
        False,
        "Keep the classes of --weights that the dataset lacks: the class layer is extended, and the old detector "
        "teaches them on the dataset's images.",
    )
    teacher: str | Path | None = setting(
        None, "Larger detector of the same classes, whose outputs the model also learns from."
    )
    distill_weight: float | None = setting(
        None, "Weight of the distance from the teacher's outputs in the loss; by default 1.", minimum=0
    )
    backbone_weights: str | Path | None = setting(
        None,
        "Weights to start the backbone alone from: a detector, a .npz of folded ImageNet weights, or for a ResNet "
        "torchvision's .pth.",
    )
    backbone: str | None = setting(
        None,
        "Backbone: b0-b7, lite0-lite4, resnet18, resnet34, resnet50, resnet101 or timm:NAME; by default the model's.",
    )
    feature_network: str | Path | None = setting(
        None,
        "Feature network: bifpn, fpn, panet, simplified-panet, nas-fpn, fully-connected, or a YAML file; by "
        "default the model's.",
    )
    fusion: str | None = setting(
        None, "Fusion of feature maps: fast, softmax, unbounded or none; by default the model's."
    )
    image_size: int | None = setting(
        None, "Side of the square input in pixels; by default the model's.", minimum=32, maximum=8192
    )
    anchor_scale: float | None = setting(
        None,
        "Side of the smallest anchor of a level, in units of the level's stride; by default that of the weights, else "
        "the model's. `efficientdet data check` suggests one.",
        minimum=1e-3,
        maximum=1e3,
    )
    aspects: tuple[float, ...] | None = setting(
        None,
        "Width over height of the anchor shapes, as many as the weights have, such as 0.5,1,2; by default those of the "
        "weights, else the model's.",
        minimum=1e-3,
        maximum=1e3,
    )
    epochs: int = setting(50, "Passes over the training split.", minimum=1)
    minutes: float | None = setting(
        None,
        "Budget of the whole run, in minutes. Image size, epochs and other settings that are not given are then chosen "
        "to suit it, the dataset and this machine, and the run ends in time.",
        above=0,
    )
    batch_size: int | Literal["auto"] = setting(
        8, "Batch size on each device, or auto: the largest power of two that fits its memory, at most 64.", minimum=1
    )
    accumulate: int = setting(1, "Batches whose gradients are added up before each step of the weights.", minimum=1)
    optimizer: Literal["sgd", "adamw"] = setting("adamw", "Optimizer: adamw or sgd (momentum 0.9).")
    learning_rate: float | None = setting(
        None,
        "Peak learning rate; by default 0.004 for 8 images a step, by the square root (adamw), or 0.08 for 64, in "
        "proportion (sgd).",
        above=0,
    )
    weight_decay: float | None = setting(
        None, "Weight decay of convolution kernels; by default 4e-5 (sgd) or 0.01 (adamw).", minimum=0
    )
    warmup_epochs: float = setting(
        1.0, "Epochs in which the learning rate rises from a tenth to its peak; at most half the run.", minimum=0
    )
    gradient_clip: float = setting(10.0, "Largest norm of the gradient; 0 for no limit.", minimum=0)
    ema_decay: float = setting(
        0.9998, "Decay of the averaged weights, which are evaluated and saved; 0 for none.", minimum=0, below=1
    )
    scale_jitter: tuple[float, float] | None = setting(
        None,
        "Range of the random scale of training images; by default 0.5 1.5, and 0.1 2.0 from 150 epochs on.",
        above=0,
        maximum=100,
    )
    flip: float = setting(0.5, "Probability of a horizontal flip of a training image.", minimum=0, maximum=1)
    box_loss: Literal["giou", "huber"] = setting(
        "giou", "Box loss: giou, of the box that is predicted, or huber, of its coordinates one by one as in the paper."
    )
    assignment: Literal["iou", "task-aligned"] | None = setting(
        None,
        "What decides which anchors learn a box: iou, their overlap with it, by default; or task-aligned, how well "
        "they predict its class and place (TOOD), after a fifth of the run by ATSS, by default with minutes.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "Precision of the arithmetic: fp32, bf16 or, on a GPU, fp16; auto takes the fastest that is safe."
    )
    batch_norm: Literal["auto", "train", "frozen"] = setting(
        "auto",
        "Batch norms of the backbone: train (statistics of the batch on all devices) or frozen (running statistics); "
        "auto freezes those of pretrained weights in batches below 4.",
    )
    backbone_rate: float = setting(0.25, "Factor on the learning rate of the backbone.", minimum=0)
    layer_decay: float = setting(
        1.0, "Factor on the learning rate from each stage of the backbone to the one below.", above=0, maximum=1
    )
    frozen_stages: int = setting(
        0, "Stages of the backbone that do not learn, from the stem up: 0-7, or 0-4 of a ResNet.", minimum=0, maximum=7
    )
    drop_path: float = setting(
        0.0, "Probability of dropping a block of the backbone (stochastic depth; EfficientNets only).",
        minimum=0, below=1,
    )  # fmt: skip
    gradient_checkpointing: bool = setting(
        False, "Recompute feature maps in the backward pass: less memory, about 40 % more time, the same result."
    )
    evaluate_every: int = setting(1, "Epochs between evaluations; the last epoch always has one.", minimum=1)
    best_metric: Literal["ap", "ap50", "ap75", "ar100", "loss"] = setting(
        "ap", "What chooses the best checkpoint on the validation split: the highest AP or AR, or the lowest loss."
    )
    patience: int | None = setting(
        None, "Evaluations without a better value of best_metric after which the run ends; by default it goes on.",
        minimum=1,
    )  # fmt: skip
    evaluate_images: int | None = setting(
        None, "Images of the validation split that are evaluated, evenly chosen; by default all.", minimum=1
    )
    save_every: int = setting(
        200, "Steps between saves of the state to resume from; each epoch's end saves too.", minimum=1
    )
    seed: int = setting(0, "Seed of weights, order and augmentation.", minimum=0, maximum=2**32 - 1)
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "Device: cpu, cuda or mps; auto takes an NVIDIA GPU where there is one."
    )
    devices: int = setting(1, "Number of devices, each with a process of its own.", minimum=1)
    workers: int | None = setting(
        None, "Processes that load images; by default none on a CPU, up to 8 on a GPU.", minimum=0, maximum=256
    )
    cache: bool | None = setting(None, "Keep decoded images in memory; by default if they fit.")
    logger: tuple[str, ...] = setting(
        ("csv", "tensorboard"), "Loggers, between commas: csv, tensorboard, wandb, mlflow."
    )
    skip_missing: bool = setting(False, "Leave out images whose file is missing.")
    allow_no_boxes: bool = setting(False, "Train even if the training split holds no box.")
    loss: LossSettings = LossSettings()

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            SettingError: a number is out of range, or two settings contradict each other; names them.
            UnknownNameError: a choice is not known.
        """
        for name in FILES:
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))
        if isinstance(self.loss, dict):  # as JSON gives it
            object.__setattr__(self, "loss", LossSettings(**self.loss))
        super().__post_init__()
        for name in self.logger:
            find_name("logger", name, LOGGERS)
        if self.scale_jitter and self.scale_jitter[0] > self.scale_jitter[1]:
            raise SettingError(f"scale_jitter is {self.scale_jitter}; the first factor must not be above the second")
        if self.precision == "fp16" and self.device == "cpu":
            raise SettingError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
        other = "huber" if self.box_loss == "giou" else "giou"
        for name in OF_BOX_LOSS[other]:
            if getattr(self.loss, name) != getattr(LossSettings(), name):
                raise SettingError(f"loss.{name} has no effect with box_loss {self.box_loss}; set box_loss to {other}")
        if self.assignment == "task-aligned" and self.box_loss != "giou":
            raise SettingError(
                f"box_loss {self.box_loss} does not suit assignment {self.assignment}, whose box loss is giou; set "
                "box_loss to giou, or assignment to iou"
            )
        self._check_teacher()

    def _check_teacher(self) -> None:
        if self.keep_classes and not self.weights:
            raise SettingError("keep_classes keeps the classes of weights; give weights too")
        if self.keep_classes and self.teacher:
            raise SettingError("keep_classes makes the old weights the teacher; leave teacher out")
        if self.distill_weight is not None and not (self.keep_classes or self.teacher):
            raise SettingError("distill_weight has no effect without teacher or keep_classes")

    def anchors(self) -> dict[str, Any]:
        """The fields of `ModelSpec` for the anchors that were asked for."""
        given = {"anchor_scale": self.anchor_scale, "aspects": self.aspects and aspect_factors(self.aspects)}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def images_at_once(self) -> int:
        """The batch size on each device, as a number.

        Raises:
            SettingError: it is `auto` and has not been found yet.
        """
        if isinstance(self.batch_size, str):
            raise SettingError(f"batch_size is {self.batch_size}, which only a training run turns into a number")
        return self.batch_size

    def scale_range(self) -> tuple[float, float]:
        """The range of the scale jitter."""
        return self.scale_jitter or (LONG_JITTER if self.epochs >= LONG_RUN_EPOCHS else JITTER)

    def assigns_by(self) -> str:
        """What decides which anchors learn a box."""
        return self.assignment or "iou"

    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up, from the number of images that a step of the weights sees."""
        if self.learning_rate is not None:
            return self.learning_rate
        images = self.images_at_once * self.accumulate * self.devices
        return 0.08 * images / 64 if self.optimizer == "sgd" else 4e-3 * math.sqrt(images / 8)

    def decay(self) -> float:
        """The weight decay."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 4e-5 if self.optimizer == "sgd" else 1e-2

    def freezes_batch_norm(self) -> bool:
        """Whether the backbone's batch norms keep their running statistics."""
        if self.batch_norm == "auto":
            is_pretrained = bool(self.weights or self.backbone_weights)
            return is_pretrained and self.images_at_once * self.devices < SMALLEST_BATCH_FOR_STATISTICS
        return self.batch_norm == "frozen"


def typed_settings(config: TrainConfig | None, settings: Mapping[str, Any]) -> frozenset[str]:
    """Names of the settings that a user has given: by keyword, or in a config with another value than the default."""
    fields = dataclasses.fields(TrainConfig) if config else ()
    given = {name for name, value in settings.items() if value is not None}
    return frozenset(given) | {one.name for one in fields if getattr(config, one.name) != one.default}


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of the command line; those that are None, or have no option, are left out."""
    words = []
    for name, value in settings.items():
        option, kind = name.replace("_", "-"), kinds(TrainConfig).get(name)
        if value is None or kind is None or kind.types == (LossSettings,):
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
            continue
        texts = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in _listed(value)]
        words += [f"--{option}", *(texts if kind.length else [",".join(texts)])]
    return words


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class TrainOptions(TypedDict, total=False):
    """The fields of `TrainConfig` as keywords, for type checkers."""

    weights: str | Path | None
    keep_classes: bool
    teacher: str | Path | None
    distill_weight: float | None
    backbone_weights: str | Path | None
    backbone: str | None
    feature_network: str | Path | None
    fusion: str | None
    image_size: int | None
    anchor_scale: float | None
    aspects: tuple[float, ...] | None
    epochs: int
    minutes: float | None
    batch_size: int | Literal["auto"]
    accumulate: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float | None
    weight_decay: float | None
    warmup_epochs: float
    gradient_clip: float
    ema_decay: float
    scale_jitter: tuple[float, float] | None
    flip: float
    box_loss: Literal["giou", "huber"]
    assignment: Literal["iou", "task-aligned"] | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    batch_norm: Literal["auto", "train", "frozen"]
    backbone_rate: float
    layer_decay: float
    frozen_stages: int
    drop_path: float
    gradient_checkpointing: bool
    evaluate_every: int
    best_metric: Literal["ap", "ap50", "ap75", "ar100", "loss"]
    patience: int | None
    evaluate_images: int | None
    save_every: int
    seed: int
    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: int
    workers: int | None
    cache: bool | None
    logger: tuple[str, ...]
    skip_missing: bool
    allow_no_boxes: bool
    loss: LossSettings
