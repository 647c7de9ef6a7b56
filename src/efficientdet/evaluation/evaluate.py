"""evaluate: a detector on a split of a dataset -> COCO metrics."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet.data.read_split import read_split
from efficientdet.data.records import Records
from efficientdet.detections import Detections
from efficientdet.errors import DataError, require
from efficientdet.evaluation.coco_ap import Metrics, metrics_of
from efficientdet.evaluation.matching import match, read_table
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.settings import EVALUATION_SCORE_THRESHOLD
from efficientdet.settings import changed, to_dict

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.inference.settings import PostprocessOptions


def evaluate(
    detector: Detector | str | Path,
    data: str | Path | Records,
    *,
    split: str = "val",
    batch_size: int = 8,
    skip_missing: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **settings: Unpack[PostprocessOptions],
) -> Metrics:
    """Measure a detector on a dataset, with the same code as `predict`.

    Args:
        detector: a detector, or what `load` takes.
        data: the dataset's folder or annotation file (see `read_split`), or records.
        split: of a folder.
        batch_size: images that go through the network together.
        skip_missing: leave out images whose file is missing.
        progress: called with the number of images done and of all images.
        **settings: fields of `PostprocessSettings`; by default the detector's, with a score threshold of 0.001.

    Returns:
        The metrics, with the matches that `evaluation.report` summarizes.

    Raises:
        DataError: the dataset is at fault, the split has no images, or a class that the detector does not know.
        ImageError: an image cannot be read.
        SettingError: a setting is unknown or out of range.
        MissingExtraError: the evaluator is not installed.
    """
    require("faster_coco_eval", "train")
    records = data if isinstance(data, Records) else read_split(data, split, skip_missing)
    if not len(records):
        raise DataError(f"{records.source}: the split has no images; there is nothing to evaluate")
    detector = detector if isinstance(detector, Detector) else load(detector)
    labels = records.labels_of(detector.class_names).tolist()
    categories = [records.category_ids[label] if label >= 0 else None for label in labels]
    # The precision-recall curve needs the detections with low scores too.
    whole_curve = dataclasses.replace(detector.postprocess, score_threshold=EVALUATION_SCORE_THRESHOLD)
    chosen: Any = to_dict(changed(whole_curve, settings))
    results, _ = [], detector.engine  # which is built before the clock starts
    started = time.perf_counter()
    found = detector.predict_many([record.path for record in records.images], batch_size=batch_size, **chosen)
    for done, (record, detections) in enumerate(zip(records.images, found, strict=True), start=1):
        results += _results(detections, record.image_id, categories)
        if progress is not None:
            progress(done, len(records))
    speed = len(records) / (time.perf_counter() - started)
    table = read_table(records.to_coco(), results)
    return dataclasses.replace(metrics_of(table), matches=match(table), images_per_second=speed)


def _results(detections: Detections, image_id: int | str, categories: list[Any]) -> list[dict[str, Any]]:
    """COCO results of an image, with the records' category ids, and the number of each detection, best first."""
    ids = [categories[label] for label in detections.labels.tolist()]
    rows = detections.to_coco(image_id)
    return [
        row | {"category_id": category, "number": number}
        for number, (row, category) in enumerate(zip(rows, ids, strict=True))
        if category is not None
    ]
