"""Two detectors on the same images: is the difference more than chance, and where is it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.read_split import read_split
from efficientdet.data.records import Records
from efficientdet.errors import DataError
from efficientdet.evaluation.coco_ap import Metrics, number
from efficientdet.evaluation.curves import class_ap, precision_recall, resampled_ap
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.evaluation.matching import Matches
from efficientdet.evaluation.mistakes import mistakes_by_image
from efficientdet.evaluation.numbers import bootstrap_weights, interval, mean_of_defined
from efficientdet.inference.detector import Detector
from efficientdet.text import printable

# Images listed as better and as worse.
LISTED = 10


@dataclass(frozen=True)
class Comparison:
    """A second detector against a first one; differences are second minus first.

    Attributes:
        names: of the two.
        metrics: of the two.
        difference: of AP.
        interval: 95 % interval of the difference, from images resampled alike for both (paired bootstrap).
        per_class: difference of AP by class name; None for a class without objects.
        better: ids of the images in which the second one makes fewer mistakes, most first, with how many fewer.
        worse: ids of the images in which it makes more, likewise.
    """

    names: tuple[str, str]
    metrics: tuple[Metrics, Metrics]
    difference: float
    interval: tuple[float, float]
    per_class: dict[str, float | None]
    better: list[tuple[Any, int]]
    worse: list[tuple[Any, int]]

    def is_certain(self) -> bool:
        """Whether the interval leaves no doubt which one is better."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "names": list(self.names),
            "metrics": [metrics.to_dict() for metrics in self.metrics],
            "difference": self.difference,
            "interval": list(self.interval),
            "per_class": self.per_class,
            "better": [{"image_id": image_id, "fewer_mistakes": count} for image_id, count in self.better],
            "worse": [{"image_id": image_id, "more_mistakes": count} for image_id, count in self.worse],
        }

    def rows(self) -> list[dict[str, str]]:
        """AP of both, overall and by class, as text; without classes that have no objects."""
        first, second = ({"all": one.ap, **one.per_class} for one in self.metrics)
        changes = {"all": self.difference} | self.per_class
        return [
            {
                "class": printable(name, 80),
                "first AP": number(first[name]),
                "second AP": number(second[name]),
                "difference": f"{change:+.3f}",
            }
            for name, change in changes.items()
            if change is not None
        ]

    def notes(self) -> list[str]:
        """Lines on the difference, and on the images that changed."""
        verdict = "more than chance" if self.is_certain() else "may be chance"
        low, high = self.interval
        lines = [f"Difference of AP {self.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}: {verdict}."]
        for what, images in (("better", self.better), ("worse", self.worse)):
            shown = ", ".join(f"{printable(image_id)} ({count})" for image_id, count in images)
            lines += [f"Images that got {what} (by mistakes): {shown}"] if shown else []
        return lines


def compare(
    first: Detector | str | Path,
    second: Detector | str | Path,
    data: str | Path | Records,
    *,
    split: str = "val",
    batch_size: int = 8,
    skip_missing: bool = False,
    resamples: int = 500,
    seed: int = 0,
) -> Comparison:
    """Evaluate two detectors on the same images and compare them.

    Args:
        first: a detector, or what `load` takes.
        second: likewise.
        data: the dataset (see `evaluate`).
        split: of a folder.
        batch_size: images that go through a network together.
        skip_missing: leave out images whose file is missing.
        resamples: number of resampled datasets, for the interval.
        seed: of the resampling.

    Returns:
        The comparison.

    Raises:
        DataError: the dataset is at fault, has no objects, or a class that one of the detectors does not know.
        ImageError: an image cannot be read.
    """
    records = data if isinstance(data, Records) else read_split(data, split, skip_missing)
    metrics = [evaluate(one, records, batch_size=batch_size) for one in (first, second)]
    names = (_name(first), _name(second))
    return compare_metrics((metrics[0], metrics[1]), names, resamples, seed)


def _name(detector: Detector | str | Path) -> str:
    return detector.info.spec.name if isinstance(detector, Detector) else str(detector)


def compare_metrics(
    metrics: tuple[Metrics, Metrics], names: tuple[str, str], resamples: int = 500, seed: int = 0
) -> Comparison:
    """The same of two evaluations of one dataset.

    Raises:
        DataError: they are of different images or classes, or there are no objects.
    """
    first, second = (one.matches for one in metrics)
    if (
        first is None
        or second is None
        or (first.image_ids, first.class_names) != (second.image_ids, second.class_names)
    ):
        raise DataError("only evaluations of the same images and classes can be compared")
    if not first.objects_by_class().any():
        raise DataError("the dataset has no objects; there is nothing to compare")
    weights = bootstrap_weights(len(first.image_ids), resamples, seed)
    before, after = (mean_of_defined(resampled_ap(matches, weights).mean(1)) for matches in (first, second))
    by_class = class_ap(second) - class_ap(first)
    change = _mistakes(second) - _mistakes(first)
    order = np.argsort(change, kind="stable")
    return Comparison(
        names,
        metrics,
        metrics[1].ap - metrics[0].ap,
        interval(after - before) or (0.0, 0.0),
        {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(first.class_names, by_class, strict=True)
        },
        [(first.image_ids[i], int(-change[i])) for i in order[:LISTED] if change[i] < 0],
        [(first.image_ids[i], int(change[i])) for i in order[::-1][:LISTED] if change[i] > 0],
    )


def _mistakes(matches: Matches) -> NDArray[np.int64]:
    """(I,) mistakes of each image at the score threshold with the best F1."""
    curve = precision_recall(matches)
    return mistakes_by_image(matches, float(curve.scores[np.argmax(curve.f1)]) if len(curve.scores) else 1.0)
