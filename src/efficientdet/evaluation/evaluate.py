"""evaluate: a detector over a split of a data set -> COCO metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efficientdet.data.dataset import read_split
from efficientdet.data.records import Records
from efficientdet.errors import DataError, SettingError, require
from efficientdet.evaluation.coco_ap import Metrics, coco_metrics
from efficientdet.evaluation.results import batch_results, ground_truth
from efficientdet.images import read
from efficientdet.inference.detector import Detector, load, with_changes
from efficientdet.inference.postprocess import BatchDetections, PostprocessSettings


def evaluate(
    detector: Detector | str | Path,
    data: str | Path | Records,
    *,
    split: str = "val",
    batch_size: int = 8,
    skip_missing: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Metrics:
    """Measure a detector on a data set, through the same path that `predict` takes.

    Args:
        detector: a detector, or what `load` takes.
        data: the data set's folder or annotation file (see `data.dataset.read_split`), or records.
        split: which split of a folder.
        batch_size: pictures at a time.
        skip_missing: leave out pictures whose file is missing.
        progress: called with (pictures done, pictures in all).
        **settings: fields of `PostprocessSettings`; the score threshold is 0.001 unless given.

    Returns:
        The metrics.

    Raises:
        DataError: the data set is at fault, or has a class that the detector does not know.
        ImageError: a picture cannot be read.
        SettingError: a setting is unknown or out of range.
        MissingExtraError: the evaluator is not installed.
    """
    require("faster_coco_eval", "train")
    records = data if isinstance(data, Records) else read_split(data, split, skip_missing)
    detector = detector if isinstance(detector, Detector) else load(detector)
    to_records = _label_map(detector.class_names, records)
    if batch_size < 1:
        raise SettingError(f"batch_size is {batch_size}; it must be at least 1")
    # A threshold in the checkpoint is for showing; the whole curve needs the faint detections too.
    own = {name: value for name, value in detector.info.postprocess.items() if name != "score_threshold"}
    chosen = with_changes(with_changes(PostprocessSettings(), own), settings)
    results = []
    for start in range(0, len(records), batch_size):
        indices = list(range(start, min(start + batch_size, len(records))))
        images = [read(records.images[i].path) for i in indices]
        found = _relabel(detector.run(images, chosen), to_records)
        results += batch_results(found, indices, records)
        if progress is not None:
            progress(indices[-1] + 1, len(records))
    return coco_metrics(ground_truth(records), results)


def _label_map(class_names: tuple[str, ...], records: Records) -> torch.Tensor:
    """(K,) label of the records for each label of the detector, by name; -1 where the records lack the class."""
    unknown = [name for name in records.class_names if name not in class_names]
    if unknown:
        raise DataError(
            f"{records.source}: the detector does not know its classes {unknown}; it knows {list(class_names)}"
        )
    places = {name: label for label, name in enumerate(records.class_names)}
    return torch.tensor([places.get(name, -1) for name in class_names])


def _relabel(found: BatchDetections, to_records: torch.Tensor) -> BatchDetections:
    """Give detections the records' labels; those of classes that the records lack move behind the rest and are cut."""
    labels = to_records[found.labels]
    real = torch.arange(labels.shape[1]) < found.counts[:, None]
    kept = (labels >= 0) & real
    order = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return BatchDetections(
        found.boxes_xyxy.gather(1, order[..., None].expand(-1, -1, 4)),
        found.scores.gather(1, order),
        labels.gather(1, order),
        kept.sum(1),
    )
