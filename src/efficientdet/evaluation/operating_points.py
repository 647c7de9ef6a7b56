"""Operating points: the score thresholds that reach an aim, chosen on one half of the images, checked on the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.errors import DataError, WeightsError
from efficientdet.evaluation.curves import Curve, Floats, precision_recall
from efficientdet.evaluation.matching import Matches
from efficientdet.evaluation.settings import ThresholdSettings
from efficientdet.text import printable
from efficientdet.weights.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint


class Point(NamedTuple):
    """What a score threshold gives on some images, at IoU 0.5; nan where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float


class OperatingPoint(NamedTuple):
    """A score threshold for an aim.

    Attributes:
        score_threshold: 0..1.
        chosen: on the half of the images on which it was chosen.
        checked: on the other half: what to expect of new images.
        is_own: whether it was chosen for this class; else it is that of all detections, since the class has too few
            objects or does not reach the aim.
    """

    score_threshold: float
    chosen: Point
    checked: Point
    is_own: bool = True


def halves(images: int, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two masks (I,): half of the images, drawn by a seed, and the rest."""
    first = np.zeros(images, np.bool_)
    first[np.random.default_rng(seed).permutation(images)[: images - images // 2]] = True
    return first, ~first


def choose_threshold(
    matches: Matches, settings: ThresholdSettings | None = None, label: int | None = None, seed: int = 0
) -> OperatingPoint:
    """Choose a score threshold on half of the images, and check it on the others.

    Args:
        matches: of an evaluation with a low score threshold.
        settings: the aim; None for the best F1.
        label: a class; None for all detections together.
        seed: of the halves.

    Returns:
        The operating point.

    Raises:
        DataError: there are fewer than two images, no object to find, or no threshold that reaches the aim.
    """
    settings = settings or ThresholdSettings()
    if len(matches.image_ids) < 2:
        raise DataError("a threshold is chosen on one half of the images and checked on the other: give at least two")
    curve = precision_recall(matches, label, images=halves(len(matches.image_ids), seed)[0])
    if not len(curve.recall) or np.isnan(curve.recall).all():
        what = "objects" if label is None else f"objects of class '{matches.class_names[label]}'"
        raise DataError(f"{what} or detections are missing in the half of the images that thresholds are chosen on")
    return _at(matches, float(curve.scores[_place(curve, settings)]), label, seed)


def choose_by_class(
    matches: Matches, settings: ThresholdSettings, overall: OperatingPoint, seed: int = 0
) -> list[OperatingPoint]:
    """The operating point of each class.

    Args:
        matches: of the evaluation.
        settings: the aim, and whether a threshold is chosen for each class.
        overall: of all detections; its threshold is used for classes that are not to have, or cannot have, their own.
        seed: of the halves.
    """
    points = []
    for label in range(len(matches.class_names)):
        point = _at(matches, overall.score_threshold, label, seed)._replace(is_own=False)
        if settings.by_class:
            try:
                point = choose_threshold(matches, settings, label, seed)
            except DataError:
                pass  # the report says which classes have none of their own
        points.append(point)
    return points


def _at(matches: Matches, score_threshold: float, label: int | None, seed: int) -> OperatingPoint:
    both = halves(len(matches.image_ids), seed)
    chosen, checked = (_point(precision_recall(matches, label, images=half), score_threshold) for half in both)
    return OperatingPoint(score_threshold, chosen, checked)


def _place(curve: Curve, settings: ThresholdSettings) -> int:
    """Index of the point of the curve that suits the aim best."""
    if settings.min_recall is not None:
        return int(_first(curve.recall >= settings.min_recall, f"recall {settings.min_recall}", curve.recall.max()))
    if settings.min_precision is not None:
        reached = (curve.precision >= settings.min_precision)[::-1]
        return len(reached) - 1 - _first(reached, f"precision {settings.min_precision}", curve.precision.max())
    if settings.false_positive_cost is not None:
        kept = np.arange(1.0, len(curve.hits) + 1)
        return int(np.argmin(settings.false_positive_cost * (kept - curve.hits) - curve.hits))
    return int(np.argmax(curve.f1))


def _first(reached: NDArray[np.bool_], aim: str, best: float) -> int:
    if not reached.any():
        raise DataError(f"no score threshold reaches {aim} at IoU 0.5; the best is {best:.3f}")
    return int(np.argmax(reached))


def _point(curve: Curve, threshold: float) -> Point:
    place = curve.at(threshold)
    if place < 0:
        return Point(float("nan"), 0.0, 0.0)
    return Point(float(curve.precision[place]), float(curve.recall[place]), float(curve.f1[place]))


def thresholds_of(points: list[OperatingPoint]) -> Floats:
    """(K,) score threshold of each class."""
    return np.array([point.score_threshold for point in points], np.float64)


def save_thresholds(weights: str | Path, threshold: Mapping[str, Any] | None) -> None:
    """Store score thresholds in a checkpoint: `predict` and exported files then use them.

    Args:
        weights: the checkpoint's path; the file is replaced, whole or not at all.
        threshold: that of a report (see `summarize`): `score_threshold`, and `by_class`, which has those of classes by
            name, or is None. Classes of the checkpoint that it does not name get the first.

    Raises:
        WeightsError: `weights` is not a checkpoint, or cannot be written.
        DataError: there is no threshold, since there are too few images to choose one.
    """
    path = Path(weights)
    if threshold is None:
        raise DataError("no score threshold could be chosen: there are too few images or objects")
    if not is_checkpoint(path):
        raise WeightsError(
            f"{printable(weights)}: a score threshold is stored in a checkpoint of your own (.safetensors)"
        )
    model, info = load_checkpoint(path)
    chosen, by_class = threshold["score_threshold"], threshold["by_class"]
    if by_class is not None:
        chosen = [by_class.get(name, chosen) for name in info.class_names]
    postprocess = {**info.postprocess, "score_threshold": chosen}
    save_checkpoint(path, model.state_dict(), dataclasses.replace(info, postprocess=postprocess))
