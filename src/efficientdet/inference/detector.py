"""Detector: `load(...).predict(...)`, from any picture to Detections in six calls."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args, overload

import numpy as np
import torch

from efficientdet.detections import Detections
from efficientdet.errors import SettingError, unknown_name
from efficientdet.family import ASPECTS
from efficientdet.images import ImageSource, ResizeMethod, letterbox_scale, prepare, read
from efficientdet.inference.engines import Engine, choose_backend, open_engine
from efficientdet.inference.postprocess import BatchDetections, PostprocessSettings, postprocess
from efficientdet.network.anchors import make_anchors
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.pixels import RgbImage
from efficientdet.weights.checkpoint import CheckpointInfo, load_checkpoint
from efficientdet.weights.names import find_weights

# The stride of P5: a smaller picture would be one cell to the deepest features of the backbone.
SMALLEST_SIDE = 32
# Predictions are for looking at; evaluation asks for everything down to 0.001.
SHOWN_SCORE = 0.3


class Detector:
    """A network with all that it takes to go from pictures to boxes.

    Any thread may call it.

    Attributes:
        model: the network, in evaluation mode.
        info: classes, preprocessing, and what else the checkpoint says.
        image_size: (height, width) that pictures are letterboxed to.
        is_rectangular: whether the padding stops at the next multiple of the coarsest stride.
        settings: of the post-processing, for predictions.
    """

    def __init__(
        self,
        model: EfficientDet,
        info: CheckpointInfo,
        *,
        device: str | torch.device = "auto",
        backend: str = "auto",
        precision: str = "fp32",
        image_size: int | tuple[int, int] | None = None,
        rectangular: bool = False,
        preprocess: str | None = None,
        anchors: str | None = None,
        **postprocess_settings: Any,
    ) -> None:
        """Put a network and its facts together.

        Args:
            model: the network.
            info: its facts.
            device: where to run; `auto` takes a GPU where there is one.
            backend: what runs the network; see `engines.open_engine`, which builds it at the first prediction.
            precision: `fp32`, `bf16`, or `fp16` on a GPU: what the network computes in.
            image_size: side of the square input, or (height, width); None for the checkpoint's.
            rectangular: pad to the next multiple of the coarsest stride instead of the whole of `image_size`: fewer
                pixels to compute, where a picture is no square.
            preprocess: `official` resizes as TensorFlow does, `effdet` as Pillow does; None for the checkpoint's.
            anchors: `rounded` or `exact` aspects of the anchors; None for the checkpoint's.
            **postprocess_settings: fields of `PostprocessSettings` other than the checkpoint's.

        Raises:
            SettingError: a setting is unknown or out of range.
                UnknownNameError: a convention, backend or precision is not known.
        """
        self.device = _device(device)
        info = _with_conventions(info, preprocess, anchors)
        model.spec = info.spec
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.info = info
        self.image_size = _height_and_width(info.spec.image_size if image_size is None else image_size)
        self.is_rectangular = rectangular
        self._choice = choose_backend(backend, precision, self.device), precision
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        base = PostprocessSettings(score_threshold=SHOWN_SCORE)
        self.settings = with_changes(with_changes(base, info.postprocess), postprocess_settings)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.info.class_names

    @property
    def engine(self) -> Engine:
        """What runs the network; built at the first use, from the weights as they are then."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = open_engine(self.model, *self._choice, self.device)
        return self._engine

    def warmup(self) -> Engine:
        """Build the engine and run it once, so that the first prediction takes no longer than the others.

        Returns:
            The engine: print it to see which backend was chosen.
        """
        height, width = self.image_size
        self.predict(np.zeros((height, width, 3), np.uint8))
        return self.engine

    @overload
    def predict(self, source: list[Any] | tuple[Any, ...], **settings: Any) -> list[Detections]: ...
    @overload
    def predict(self, source: ImageSource, **settings: Any) -> Detections: ...

    def predict(self, source: Any, **settings: Any) -> Detections | list[Detections]:
        """Find objects in one picture, or in each of a list.

        Args:
            source: a path, bytes, PIL image, (H, W, 3) RGB array, tensor (see `images.read`); or a list or tuple of
                such, of any sizes.
            **settings: fields of `PostprocessSettings` for this call, such as `score_threshold=0.5`; and
                `batch_size` (8) for lists.

        Returns:
            Detections, or a list of them in the order of the pictures. Boxes are pixels of the original picture.

        Raises:
            ImageError: a picture cannot be read.
            SettingError: a setting is unknown or out of range.
        """
        batch_size = settings.pop("batch_size", 8)
        if isinstance(source, (list, tuple)):
            return list(self.predict_many(source, batch_size=batch_size, **settings))
        return next(self.predict_many([source], batch_size=1, **settings))

    def predict_many(
        self, sources: Iterable[ImageSource], *, batch_size: int = 8, **settings: Any
    ) -> Iterator[Detections]:
        """Find objects in many pictures, a batch at a time: the same as `predict`, without holding all in memory."""
        if batch_size < 1:
            raise SettingError(f"batch_size is {batch_size}; it must be at least 1")
        chosen = with_changes(self.settings, settings)
        batch: list[ImageSource] = []
        for source in sources:
            batch.append(source)
            if len(batch) == batch_size:
                yield from self._predict_batch(batch, chosen)
                batch = []
        if batch:
            yield from self._predict_batch(batch, chosen)

    def _predict_batch(self, sources: Sequence[ImageSource], settings: PostprocessSettings) -> list[Detections]:
        images = [read(source) for source in sources]
        found = self.run(images, settings)
        return [
            Detections(
                found.boxes_xyxy[i, :count].numpy(),
                found.scores[i, :count].numpy(),
                found.labels[i, :count].numpy(),
                self.info.class_names,
                image.shape[:2],
                self.info.category_ids,
                image,
                str(source) if isinstance(source, (str, Path)) else None,
            )
            for i, (source, image, count) in enumerate(zip(sources, images, found.counts.tolist(), strict=True))
        ]

    @torch.inference_mode()
    def run(self, images: Sequence[RgbImage], settings: PostprocessSettings) -> BatchDetections:
        """Letterbox, network, post-processing: (H, W, 3) uint8 RGB pictures of any sizes to a batch of detections."""
        size = self._input_size(images)
        prepared = [prepare(image, size, self.info.preprocessing) for image in images]
        pixels = torch.from_numpy(np.stack([canvas for canvas, _ in prepared])).to(self.device)
        class_logits, box_deltas = self.engine.run(pixels)
        found = postprocess(
            class_logits,
            box_deltas,
            make_anchors(self.info.spec, size, self.device),
            settings,
            scales=torch.tensor([scale for _, scale in prepared], device=self.device),
            image_sizes=torch.tensor([image.shape[:2] for image in images], device=self.device),
        )
        return BatchDetections(*(part.cpu() for part in found))

    def _input_size(self, images: Sequence[RgbImage]) -> tuple[int, int]:
        """(height, width) of the network's input for a batch."""
        if not self.is_rectangular:
            return self.image_size
        step = self.info.spec.strides[-1]
        method = self.info.preprocessing.resize
        contents = [letterbox_scale(image.shape[:2], self.image_size, method)[1] for image in images]
        sides = (max(side) for side in zip(*contents, strict=True))
        height, width = (min(-(-side // step) * step, most) for side, most in zip(sides, self.image_size, strict=True))
        return height, width


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    backend: str = "auto",
    precision: str = "fp32",
    image_size: int | tuple[int, int] | None = None,
    rectangular: bool = False,
    preprocess: str | None = None,
    anchors: str | None = None,
    **postprocess_settings: Any,
) -> Detector:
    """Load a detector: weights, classes, preprocessing and anchors come from the one file.

    Args:
        name_or_path: a bundled model (`people`, `cells`); the path of a `.safetensors` checkpoint; a released model
            (`d0`, `lite0`, ...), downloaded at the first call; or `hf://owner/repo`.
        device: where to run; `auto` takes a GPU where there is one.
        backend: `eager`, `compile`, `onnxruntime`, `openvino` or `tensorrt`; `auto` takes the best installed.
        precision: `fp32`, `bf16`, or `fp16` on a GPU.
        image_size: side of the square input, or (height, width); None for the checkpoint's.
        rectangular: pad to the next multiple of the coarsest stride instead of the whole of `image_size`.
        preprocess: `official` resizes as TensorFlow does, `effdet` as Pillow does; None for the checkpoint's.
        anchors: `rounded` or `exact` aspects of the anchors; None for the checkpoint's.
        **postprocess_settings: fields of `PostprocessSettings`, such as `nms="soft"`.

    Returns:
        The detector.

    Raises:
        UnknownNameError: no such weights, or no such convention; lists those there are.
        WeightsError: the file is missing, damaged, not one of ours, or cannot be downloaded.
        SettingError: a setting is unknown or out of range.
    """
    model, info = load_checkpoint(find_weights(name_or_path))
    return Detector(
        model, info, device=device, backend=backend, precision=precision, image_size=image_size,
        rectangular=rectangular, preprocess=preprocess, anchors=anchors, **postprocess_settings,
    )  # fmt: skip


def _with_conventions(info: CheckpointInfo, preprocess: str | None, anchors: str | None) -> CheckpointInfo:
    if preprocess is not None:
        if preprocess not in get_args(ResizeMethod):
            raise unknown_name("preprocess", preprocess, get_args(ResizeMethod))
        preprocessing = dataclasses.replace(info.preprocessing, resize=cast(ResizeMethod, preprocess))
        info = dataclasses.replace(info, preprocessing=preprocessing)
    if anchors is not None:
        if anchors not in ASPECTS:
            raise unknown_name("anchors", anchors, ASPECTS)
        info = dataclasses.replace(info, spec=dataclasses.replace(info.spec, aspects=ASPECTS[anchors]))
    return info


def with_changes(settings: PostprocessSettings, changes: Mapping[str, Any]) -> PostprocessSettings:
    """The settings with some fields changed.

    Raises:
        SettingError: a field is unknown or out of range; names it.
    """
    known = [field.name for field in dataclasses.fields(PostprocessSettings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise SettingError(f"unknown settings {unknown}; known: {', '.join(known)}")
    return dataclasses.replace(settings, **changes)


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= SMALLEST_SIDE for side in sides):
        raise SettingError(
            f"image_size is {size}; give the side of a square or (height, width), each at least {SMALLEST_SIDE} pixels"
        )
    return sides[0], sides[1]


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingError(f"device '{device}' cannot be used here ({reason})") from error
    return chosen
