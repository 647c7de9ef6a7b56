"""The whole check of a dataset, and the quick one before a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from efficientdet.data.fields import Fault, collected_faults
from efficientdet.data.quality.anchors import AnchorReport, anchor_findings, check_anchors
from efficientdet.data.quality.annotations import TRAIN, VAL, check_boxes, check_classes
from efficientdet.data.quality.findings import Finding
from efficientdet.data.quality.images import check_images
from efficientdet.data.read_split import SPLITS, has_several_splits, read_split
from efficientdet.data.records import Records
from efficientdet.errors import DataError, MissingSplitError
from efficientdet.family import ModelSpec


class Reading(NamedTuple):
    """The splits of a dataset that could be read, and what kept the rest from it.

    Attributes:
        splits: records by name.
        findings: on entries that were left out, and on files that cannot be read at all.
    """

    splits: dict[str, Records]
    findings: list[Finding]


def read_all(data: str | Path) -> Reading:
    """Read the splits of a dataset, past entries that are wrong.

    Args:
        data: folder of the dataset, or a file, as `read_split` takes them. One file of annotations is read as `train`.

    Raises:
        MissingSplitError: there is no split at all.
    """
    splits: dict[str, Records] = {}
    findings: list[Finding] = []
    known: set[str] = set()
    is_one_split = not has_several_splits(data)
    missing: MissingSplitError | None = None
    for split in (TRAIN,) if is_one_split else SPLITS:
        with collected_faults() as faults:
            try:
                splits[split] = read_split(data, split)
            except MissingSplitError as error:
                missing = missing or error
            except DataError as error:
                faults.append(Fault(error))
        for fault in faults:
            if str(fault.error) not in known:  # files of Pascal VOC are read for the classes of each split
                known.add(str(fault.error))
                place = (split, fault.file, fault.image_id, fault.annotation_ids)
                findings.append(Finding(fault.error.code, str(fault.error), *place))
    if missing is not None and not splits and not findings:
        raise missing
    if TRAIN in splits and len(splits) == 1 and not is_one_split:
        findings.append(Finding("split-missing", "there is a training split only", file=str(splits[TRAIN].source)))
    return Reading(splits, findings)


def check_splits(
    splits: Mapping[str, Records],
    spec: ModelSpec,
    image_size: int,
    progress: Callable[[int, int], None] | None = None,
    decode: bool = True,
) -> tuple[list[Finding], AnchorReport | None]:
    """Every check of splits; `decode` opens the images too, to find unreadable, turned and repeated ones.

    Returns:
        The findings, and how well the anchors fit the boxes to train on; None without any.

    Raises:
        MissingExtraError: imagehash is not installed; gives the pip command.
    """
    findings = [finding for split, records in splits.items() for finding in check_boxes(records, split)]
    findings += check_classes(splits)
    anchors = check_anchors([splits[TRAIN]] if TRAIN in splits else splits.values(), spec, image_size)
    if anchors is not None:
        findings += anchor_findings(anchors)
    if decode:
        findings += check_images(splits, progress)
    return findings, anchors


def quick_check(train: Records, val: Records | None, spec: ModelSpec) -> list[Finding]:
    """What can be found without decoding an image: the check before a training."""
    splits = {TRAIN: train} if val is None else {TRAIN: train, VAL: val}
    return check_splits(splits, spec, spec.image_size, decode=False)[0]
