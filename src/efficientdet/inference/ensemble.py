"""Several detectors, or one in several views of an image, as one detector: their boxes are fused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.detections import Detections
from efficientdet.errors import SettingError
from efficientdet.images.convert import RgbImage
from efficientdet.images.read import ImageSource, read
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.nms import weighted_box_fusion
from efficientdet.inference.settings import (
    EVALUATION_SCORE_THRESHOLD,
    DetectorSettings,
    EnsembleSettings,
    PostprocessSettings,
)
from efficientdet.settings import changed, divided, to_dict

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.images.letterbox import Prepared
    from efficientdet.inference.settings import EnsembleOptions
    from efficientdet.network.efficientdet import EfficientDet


def ensemble(
    *detectors: Detector | str | Path, weights: Sequence[float] | None = None, **settings: Unpack[EnsembleOptions]
) -> Detector:
    """Make one detector of several, or of several views of an image (test-time augmentation).

        ensemble("a.safetensors", "b.safetensors", flip=True).predict("photo.jpg")

    Each detects in each view; weighted box fusion makes one answer of theirs. It takes as many times as long.

    Args:
        *detectors: detectors, or what `load` takes; of the same classes.
        weights: how much the vote of each counts; None for the same.
        **settings: fields of `EnsembleSettings`, such as `scales=(1, 1.25)`; and of `DetectorSettings` and
            `PostprocessSettings`, for those that are loaded.

    Returns:
        The ensemble; with one detector and one view, that detector.

    Raises:
        SettingError: a setting is unknown or out of range, the classes differ, or an exported file, which has one input
            size, is to see several.
        WeightsError: a file cannot be loaded.
    """
    views, own, post = divided(settings, EnsembleSettings, DetectorSettings, PostprocessSettings)
    chosen, given = changed(EnsembleSettings(), views), {**own, **post}
    members = [one if isinstance(one, Detector) else load(one, **given) for one in detectors]
    if not members:
        raise SettingError("an ensemble needs at least one detector")
    if len(members) == 1 and chosen == EnsembleSettings():
        return members[0]
    return Ensemble(members, chosen, weights)


class _Views(NamedTuple):
    """An image on its way: the inputs of each member and view, and what its detections will say of it."""

    inputs: list[Prepared]
    image: RgbImage
    source: str | None


class Ensemble(Detector):
    """A detector that asks others, and fuses their boxes.

    It takes the post-processing and the classes of the first one. Each detects down to a score of 0.001; the score
    threshold and the largest number of detections apply to the fused boxes.

    Attributes:
        members: the detectors.
        views: scale of the input, and whether it is mirrored, of each view.
        weights: of each member's vote.
    """

    def __init__(
        self, members: Sequence[Detector], settings: EnsembleSettings, weights: Sequence[float] | None = None
    ) -> None:
        """See `ensemble`."""
        first = members[0]
        options: dict[str, Any] = to_dict(first.settings) | to_dict(first.postprocess)
        super().__init__(None, first.info, engine=first.engine, **options)
        self.members = tuple(members)
        self.views = [(scale, mirrored) for scale in settings.scales for mirrored in (False, True)[: 1 + settings.flip]]
        self.weights = [1.0] * len(members) if weights is None else list(map(float, weights))
        if len(self.weights) != len(members) or min(self.weights) <= 0:
            raise SettingError(
                f"weights is {self.weights}; give a positive number for each of {len(members)} detectors"
            )
        for one in self.members:
            if one.class_names != first.class_names:
                raise SettingError(
                    f"the detectors of an ensemble know other classes: {list(first.class_names)} and "
                    f"{list(one.class_names)}"
                )
            one._with(one.postprocess, {"score_threshold": EVALUATION_SCORE_THRESHOLD})  # refused by what cannot
            if one.settings.reduced_decoding:
                raise SettingError("reduced_decoding cannot be used in an ensemble, which reads an image once for all")
            if one._model is None and set(settings.scales) != {1.0}:
                raise SettingError("scales needs checkpoints: an exported file is run at its own input size")

    @property
    def model(self) -> EfficientDet:
        """An ensemble has no one network.

        Raises:
            SettingError: always.
        """
        raise SettingError("an ensemble has several networks or views; give one checkpoint, without flip and scales")

    def _prepare(self, source: ImageSource, scale: float = 1.0) -> _Views:  # type: ignore[override]
        with self._timed("decode"):
            image = read(source)
        mirrored = np.ascontiguousarray(image[:, ::-1])
        with self._timed("preprocess"):
            inputs = [
                member._prepare(mirrored if is_mirrored else image, scale * own)
                for member in self.members
                for own, is_mirrored in self.views
            ]
        return _Views(inputs, image, str(source) if isinstance(source, (str, Path)) else None)

    def _detect(  # type: ignore[override]
        self, images: Sequence[_Views], settings: PostprocessSettings, streams: int = 1
    ) -> list[Detections]:
        """Let every member detect in every view, and fuse what they find in each image."""
        every = dataclasses.replace(settings, score_threshold=EVALUATION_SCORE_THRESHOLD)
        parts = [
            member._detect([image.inputs[number] for image in images], every, streams)
            for number, member in enumerate(one for one in self.members for _ in self.views)
        ]
        return [self._fused(image, [part[i] for part in parts], settings) for i, image in enumerate(images)]

    def _fused(self, image: _Views, parts: list[Detections], settings: PostprocessSettings) -> Detections:
        width = image.image.shape[1]
        mirrored = [is_mirrored for _ in self.members for _, is_mirrored in self.views]
        boxes, scores, labels = weighted_box_fusion(
            [
                _mirror(part.boxes_xyxy, width) if is_mirrored else part.boxes_xyxy
                for part, is_mirrored in zip(parts, mirrored, strict=True)
            ],
            [part.scores for part in parts],
            [part.labels for part in parts],
            [weight for weight in self.weights for _ in self.views],
        )
        floors = np.array(settings.class_thresholds(len(self.class_names)), np.float32)
        kept = np.flatnonzero(scores >= floors[labels])[: settings.max_detections]
        return dataclasses.replace(
            parts[0], boxes_xyxy=boxes[kept], scores=scores[kept], labels=labels[kept], image=image.image,
            source=image.source,
        )  # fmt: skip


def _mirror(boxes_xyxy: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """(N, 4) boxes of a mirrored image in the image itself."""
    left, top, right, bottom = boxes_xyxy.T
    return np.stack([width - right, top, width - left, bottom], 1)
