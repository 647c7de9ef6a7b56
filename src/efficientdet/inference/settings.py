"""The settings of a detector, its post-processing and its benchmark: defaults, ranges and descriptions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

from efficientdet.errors import SettingError
from efficientdet.settings import Settings, setting
from efficientdet.video.settings import TrackOptions, VideoOptions

Backend: TypeAlias = Literal["auto", "eager", "compile", "onnxruntime", "openvino", "tensorrt"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Nms: TypeAlias = Literal["hard", "soft", "matrix", "wbf"]

# Which precisions each backend can be asked for; fp16 needs a GPU.
OFFERED = {
    "eager": ("fp32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32",),
    "openvino": ("fp32", "bf16"),
    "tensorrt": ("fp32", "fp16"),
}
# Evaluation looks at the whole precision-recall curve; predictions are for looking at.
EVALUATION_SCORE_THRESHOLD = 0.001


def wanted_backend(backend: str) -> str:
    """The backend that was asked for, where `auto` means the one that the environment names, if it does."""
    return os.environ.get("EFFICIENTDET_BACKEND", "auto") if backend == "auto" else backend


@dataclass(frozen=True)
class PostprocessSettings(Settings):
    """How raw outputs become detections. A checkpoint may store values of its own, which go before these defaults."""

    score_threshold: float | tuple[float, ...] = setting(
        0.3,
        "Score below which detections are dropped; or one for each class, in the order of the classes.",
        minimum=0,
        maximum=1,
        also="threshold",
    )
    iou_threshold: float = setting(
        0.5,
        "NMS IoU threshold: of two boxes of a class that overlap by more, the better one stays.",
        minimum=0,
        maximum=1,
    )
    max_detections: int = setting(100, "Largest number of detections of an image.", minimum=1)
    nms: Nms = setting(
        "hard",
        "Kind of NMS: hard; soft, Gaussian (Bodla et al. 2017); matrix (Wang et al. 2020); or wbf, hard NMS whose "
        "boxes move to the mean of those that they suppress (Solovyev et al. 2021).",
    )
    sigma: float = setting(0.5, "Width of the decay exp(-iou^2 / sigma) of soft and matrix NMS.", above=0)
    max_candidates: int = setting(
        5000, "Candidates, (anchor, class) pairs with the best scores, kept before NMS.", minimum=1
    )
    candidates: Literal["pairs", "argmax"] = setting(
        "pairs", "Which pairs are candidates: every class of an anchor (pairs), or its best class alone (argmax)."
    )
    tiles: int | None = setting(
        None,
        "Side in pixels of the overlapping tiles in which larger images are predicted too, beside the whole, so that "
        "small objects are found; by default there are none.",
        minimum=32,
        maximum=8192,
    )
    overlap: float = setting(0.2, "Share of a tile that the next one repeats.", minimum=0, maximum=0.9)

    @property
    def lowest_threshold(self) -> float:
        """The score below which detections of every class are dropped."""
        return min(self.score_threshold) if isinstance(self.score_threshold, tuple) else self.score_threshold

    def class_thresholds(self, classes: int) -> tuple[float, ...]:
        """The score threshold of each class.

        Raises:
            SettingError: there are thresholds for another number of classes.
        """
        if not isinstance(self.score_threshold, tuple):
            return (self.score_threshold,) * classes
        if len(self.score_threshold) != classes:
            raise SettingError(
                f"score_threshold has {len(self.score_threshold)} values, the detector {classes} classes; give one for "
                "each of them, or one for all"
            )
        return self.score_threshold


@dataclass(frozen=True)
class DetectorSettings(Settings):
    """Where and how a detector runs its network, and what it feeds it."""

    device: str = setting("auto", "Device: cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")
    backend: Backend = setting(
        "auto",
        "What runs the network: eager or compile (PyTorch), onnxruntime, openvino, tensorrt; auto takes the best "
        "installed.",
    )
    precision: Precision = setting("fp32", "Precision of the arithmetic: fp32, bf16, or fp16 on a GPU.")
    image_size: int | tuple[int, int] | None = setting(
        None,
        "Input size in pixels, the side of a square or height x width; by default the checkpoint's.",
        minimum=32,
        maximum=8192,
    )
    rectangular: bool = setting(
        False, "Pad images to the next multiple of the coarsest stride instead of a square: fewer pixels to compute."
    )
    reduced_decoding: bool = setting(
        False, "Decode JPEG files at least twice as large as the input at a half, a quarter or an eighth of their size."
    )
    preprocess: Literal["effdet", "official"] | None = setting(
        None, "Resizing: effdet (Pillow's, antialiased) or official (TensorFlow's); by default the checkpoint's."
    )
    anchors: Literal["rounded", "exact"] | None = setting(
        None, "Anchor aspects: rounded (1.4 and 0.7) or exact (square roots of 2 and 1/2); by default the checkpoint's."
    )


@dataclass(frozen=True)
class EnsembleSettings(Settings):
    """In which views of an image a detector looks; its boxes are fused."""

    flip: bool = setting(
        False, "Detect in the mirrored image too, and fuse the boxes (test-time augmentation): twice the time."
    )
    scales: tuple[float, ...] = setting(
        (1.0,),
        "Input sizes, relative to the detector's own, at which to detect before the boxes are fused, such as 1,1.25.",
        minimum=0.1,
        maximum=8,
    )


@dataclass(frozen=True)
class BenchmarkSettings(Settings):
    """What `benchmark` measures: every backend in every precision at every batch size."""

    backends: tuple[Backend, ...] = setting(("auto",), "Backends, such as eager,openvino.")
    precisions: tuple[Precision, ...] = setting(("fp32",), "Precisions of the arithmetic, such as fp32,bf16.")
    batch_sizes: tuple[int, ...] = setting((1,), "Numbers of images predicted together, such as 1,8.", minimum=1)
    images: str | None = setting(None, "An image, a folder or a glob; by default a sample of 640x480 pixels.")
    rounds: int = setting(7, "Rounds in which the models, backends and so on take turns.", minimum=1)
    iterations: int = setting(3, "Predictions measured at each turn, after one that is not.", minimum=1)
    threads: int | None = setting(None, "Threads; by default PyTorch's choice.", minimum=1)


class PostprocessOptions(TypedDict, total=False):
    """The fields of `PostprocessSettings` as keywords, for type checkers; `threshold` is `score_threshold`."""

    score_threshold: float | tuple[float, ...]
    threshold: float | tuple[float, ...]
    iou_threshold: float
    max_detections: int
    nms: Nms
    sigma: float
    max_candidates: int
    candidates: Literal["pairs", "argmax"]
    tiles: int | None
    overlap: float


class DetectorOptions(PostprocessOptions, total=False):
    """The fields of `DetectorSettings` and `PostprocessSettings` as keywords, for type checkers."""

    device: str
    backend: Backend
    precision: Precision
    image_size: int | tuple[int, int] | None
    rectangular: bool
    reduced_decoding: bool
    preprocess: Literal["effdet", "official"] | None
    anchors: Literal["rounded", "exact"] | None


class EnsembleOptions(DetectorOptions, total=False):
    """The fields of `EnsembleSettings` and those of `DetectorOptions` as keywords, for type checkers."""

    flip: bool
    scales: tuple[float, ...]


class StreamOptions(PostprocessOptions, VideoOptions, TrackOptions, total=False):
    """The fields of `PostprocessSettings`, `VideoSettings` and `TrackSettings` as keywords, for type checkers."""
