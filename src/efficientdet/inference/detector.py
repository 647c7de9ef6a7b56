"""Detector: `load(...).predict(...)`, from any picture to Detections in six calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from efficientdet.detections import Detections
from efficientdet.errors import SettingError
from efficientdet.images import ImageSource, RgbImage, prepare, read
from efficientdet.inference.postprocess import BatchDetections, PostprocessSettings, postprocess
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.checkpoint import CheckpointInfo, load_checkpoint
from efficientdet.weights.names import find_weights

# Predictions are for looking at; evaluation asks for everything down to 0.001.
SHOWN_SCORE = 0.3


class Detector:
    """A network with all that it takes to go from pictures to boxes.

    Attributes:
        model: the network, in evaluation mode.
        info: classes, preprocessing, and what else the checkpoint says.
        image_size: (height, width) that pictures are letterboxed to.
        settings: of the post-processing, for predictions.
    """

    def __init__(
        self,
        model: EfficientDet,
        info: CheckpointInfo,
        *,
        device: str | torch.device = "auto",
        image_size: int | tuple[int, int] | None = None,
        **postprocess_settings: Any,
    ) -> None:
        """Put a network and its facts together.

        Args:
            model: the network.
            info: its facts.
            device: where to run; `auto` takes a GPU where there is one.
            image_size: side of the square input, or (height, width); None for the checkpoint's.
            **postprocess_settings: fields of `PostprocessSettings` other than the checkpoint's.

        Raises:
            SettingError: a setting is unknown or out of range.
        """
        self.device = _device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.info = info
        size = image_size or info.spec.image_size
        self.image_size = (size, size) if isinstance(size, int) else size
        if min(self.image_size) < 32:
            raise SettingError(f"image_size is {self.image_size}; both sides must be at least 32 pixels")
        base = PostprocessSettings(**{"score_threshold": SHOWN_SCORE, **info.postprocess})
        self.settings = _with(base, postprocess_settings)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.info.class_names

    @overload
    def predict(self, source: Sequence[ImageSource], **settings: Any) -> list[Detections]: ...
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
        chosen = _with(self.settings, settings)
        batch: list[ImageSource] = []
        for source in sources:
            batch.append(source)
            if len(batch) == batch_size:
                yield from self._predict_batch(batch, chosen)
                batch = []
        if batch:
            yield from self._predict_batch(batch, chosen)

    def _predict_batch(
        self, sources: Sequence[ImageSource], settings: PostprocessSettings
    ) -> list[Detections]:
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
        prepared = [prepare(image, self.image_size, self.info.preprocessing) for image in images]
        pixels = torch.from_numpy(np.stack([canvas for canvas, _ in prepared]))
        pixels = pixels.to(self.device, memory_format=torch.channels_last)
        class_logits, box_deltas = self.model(pixels)
        found = postprocess(
            class_logits,
            box_deltas,
            self.model.anchors(self.image_size),
            settings,
            scales=torch.tensor([scale for _, scale in prepared], device=self.device),
            image_sizes=torch.tensor([image.shape[:2] for image in images], device=self.device),
        )
        return BatchDetections(*(part.cpu() for part in found))


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    image_size: int | tuple[int, int] | None = None,
    **postprocess_settings: Any,
) -> Detector:
    """Load a detector: weights, classes, preprocessing and anchors come from the one file.

    Args:
        name_or_path: a bundled model (`people`, `cells`), or the path of a `.safetensors` checkpoint.
        device: where to run; `auto` takes a GPU where there is one.
        image_size: side of the square input, or (height, width); None for the checkpoint's.
        **postprocess_settings: fields of `PostprocessSettings`, such as `nms="soft"`.

    Returns:
        The detector.

    Raises:
        UnknownNameError: no such bundled model; lists those there are.
        WeightsError: the file is missing, damaged, or not one of ours.
        SettingError: a setting is unknown or out of range.
    """
    model, info = load_checkpoint(find_weights(name_or_path))
    return Detector(model, info, device=device, image_size=image_size, **postprocess_settings)


def _with(settings: PostprocessSettings, changes: dict[str, Any]) -> PostprocessSettings:
    known = [field.name for field in dataclasses.fields(PostprocessSettings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise SettingError(f"unknown settings {unknown}; known: {', '.join(known)}")
    return dataclasses.replace(settings, **changes)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"device '{device}' cannot be used here ({str(error).splitlines()[0]})") from error
    return chosen
