"""check_data: a dataset in, a report on what may be wrong with it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet.data.quality.check import Reading, check_splits, read_all
from efficientdet.data.quality.findings import Finding, grouped, without_consequences
from efficientdet.data.quality.report import DataReport, SplitSummary
from efficientdet.data.settings import CheckSettings
from efficientdet.evaluation.label_errors import SCORE_THRESHOLD, label_findings
from efficientdet.family import ModelSpec, aspect_factors, find_spec
from efficientdet.settings import changed
from efficientdet.text import printable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.data.settings import CheckOptions

# Weights that a training on parts of the dataset starts from, where they suit the model.
START = {"lite0": "people"}


def check_data(
    data: str | Path,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Unpack[CheckOptions],
) -> DataReport:
    """Look for what may be wrong with a dataset: boxes, classes, images, anchors and, with a model, labels.

    Nothing of the dataset is changed; `data.quality.fixes.write_fixed` writes a corrected copy.

    Args:
        data: folder of the dataset, or a file (see `read_split`); of a folder, the splits train, val and test.
        progress: called with what is being done, how much of it is done, and how much there is.
        **settings: fields of `CheckSettings`, such as `image_size=512`.

    Returns:
        The report.

    Raises:
        MissingSplitError: there is no split.
        SettingError: a setting is unknown or out of range.
        MissingExtraError: a library is not installed; gives the pip command.
    """
    return report_on(str(data), read_all(data), changed(CheckSettings(), settings), progress)


def report_on(
    data: str, reading: Reading, settings: CheckSettings, progress: Callable[[str, int, int], None] | None = None
) -> DataReport:
    """As `check_data`, of splits that were read."""
    tell = progress or (lambda *_: None)
    spec, splits = _spec(settings), reading.splits
    findings, anchors = list(reading.findings), None
    if splits:
        found, anchors = check_splits(
            splits, spec, spec.image_size, lambda done, total: tell("decoding", done, total), settings.decode
        )
        findings += found
    labels_by = ""
    if splits and (settings.weights or settings.folds):
        found, labels_by = _labels(reading, spec, settings, tell)
        findings += found
    return DataReport(
        printable(data),
        spec.name,
        {split: SplitSummary.of(records) for split, records in splits.items()},
        anchors,
        [finding for group in grouped(without_consequences(findings)).values() for finding in group],
        labels_by,
    )


def _spec(settings: CheckSettings) -> ModelSpec:
    spec = find_spec(settings.model)
    given: dict[str, Any] = {"image_size": settings.image_size, "anchor_scale": settings.anchor_scale}
    given["aspects"] = settings.aspects and aspect_factors(settings.aspects)
    return dataclasses.replace(spec, **{name: value for name, value in given.items() if value is not None})


def _labels(
    reading: Reading, spec: ModelSpec, settings: CheckSettings, tell: Callable[[str, int, int], None]
) -> tuple[list[Finding], str]:
    """Likely label errors, and which models looked for them."""
    findings: list[Finding] = []
    if settings.folds:
        from efficientdet.training.folds import out_of_fold

        start = START.get(spec.name)
        detections = out_of_fold(
            list(reading.splits.values()), spec, settings.folds, SCORE_THRESHOLD, lambda line: tell(line, 0, 0),
            epochs=settings.fold_epochs, weights=start,
        )  # fmt: skip
        for (split, records), found in zip(reading.splits.items(), detections, strict=True):
            findings += label_findings(records, split, found)
        return findings, (
            f"{settings.folds} models ({spec.name}, {settings.fold_epochs} epochs), "
            "each on images that it was not trained on"
        )
    from efficientdet.inference.detector import load

    detector = load(str(settings.weights))
    for split, records in reading.splits.items():
        found = []
        paths = [record.path for record in records.images]
        for detections_of_image in detector.predict_many(paths, score_threshold=SCORE_THRESHOLD):
            found.append(detections_of_image)
            tell(f"looking at {split}", len(found), len(paths))
        findings += label_findings(records, split, found)
    return findings, (
        f"{printable(settings.weights)}, which has learned the errors of the images that it was trained on"
    )
