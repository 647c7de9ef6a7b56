"""Operating points: the score threshold that reaches an aim, chosen on one half of the images, checked on the other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.errors import DataError, WeightsError
from efficientdet.evaluation.curves import Curve, precision_recall
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
    """

    score_threshold: float
    chosen: Point
    checked: Point


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
    first, second = halves(len(matches.image_ids), seed)
    curve = precision_recall(matches, label, images=first)
    if not len(curve.recall) or np.isnan(curve.recall).all():
        what = "objects" if label is None else f"objects of class '{matches.class_names[label]}'"
        raise DataError(f"{what} or detections are missing in the half of the images that thresholds are chosen on")
    threshold = float(curve.scores[_place(curve, settings)])
    other = precision_recall(matches, label, images=second)
    return OperatingPoint(threshold, _point(curve, threshold), _point(other, threshold))


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


def save_threshold(weights: str | Path, score_threshold: float | None) -> None:
    """Store a score threshold in a checkpoint: `predict` and exported files then use it.

    Args:
        weights: the checkpoint's path; the file is replaced, whole or not at all.
        score_threshold: 0..1.

    Raises:
        WeightsError: `weights` is not a checkpoint, or cannot be written.
        DataError: there is no threshold, since there are too few images to choose one.
    """
    path = Path(weights)
    if score_threshold is None:
        raise DataError("no score threshold could be chosen: there are too few images or objects")
    if not is_checkpoint(path):
        raise WeightsError(
            f"{printable(weights)}: a score threshold is stored in a checkpoint of your own (.safetensors)"
        )
    model, info = load_checkpoint(path)
    postprocess = {**info.postprocess, "score_threshold": score_threshold}
    save_checkpoint(path, model.state_dict(), dataclasses.replace(info, postprocess=postprocess))
