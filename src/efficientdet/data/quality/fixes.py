"""A corrected copy of a dataset: what can be mended without looking at an image, and nothing else."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientdet.atomic_write import replacing
from efficientdet.data.builder import clean_boxes
from efficientdet.data.coco import read_coco
from efficientdet.data.fields import turned_upright
from efficientdet.data.quality.findings import Finding
from efficientdet.data.records import (
    BOXES_CLIPPED,
    BOXES_DEGENERATE,
    BOXES_OUTSIDE,
    ChangedBox,
    ImageRecord,
    Records,
)
from efficientdet.data.settings import WriteSettings
from efficientdet.data.write import write_dataset
from efficientdet.data.write_formats import WRITERS
from efficientdet.errors import DataError, SettingError
from efficientdet.images.read import exif_orientation

# What reading leaves out, and what a copy leaves out beyond that, by the code of the finding.
ENTRIES = {
    "annotation-unreadable": "entries left out: cannot be read",
    "image-missing": "images left out: missing",
    "image-size": "images left out: of another size",
}
IMAGES = {
    "image-unreadable": "images left out: cannot be decoded",
    "split-overlap": "images left out: in the training split too",
}
BOXES = {
    BOXES_CLIPPED: "boxes clipped to the image",
    BOXES_OUTSIDE: "boxes left out: outside the image",
    BOXES_DEGENERATE: "boxes left out: without an area",
}
REPEATED = "boxes left out: second on an object"
TURNED = "images whose boxes are turned by EXIF"
EVERY_FIX = (*ENTRIES.values(), *IMAGES.values(), *BOXES.values(), REPEATED, TURNED)


def write_fixed(splits: Mapping[str, Records], findings: Iterable[Finding], out: str | Path) -> dict[str, int]:
    """Write a corrected copy, as COCO JSON; the dataset itself is left as it is.

    Boxes are clipped to their image, or left out where nothing is left of them; of two boxes of one class on one object
    the first is kept; boxes made for an image before its EXIF rotation are turned; images that cannot be read, or are
    in the training split too, are left out.

    Args:
        splits: records as read for the check, by name.
        findings: of the check.
        out: a new folder, for annotations and copies of the images; or, for a dataset of one split, a new `.json` file
            in a place from which the images are found, such as beside the original.

    Returns:
        How often each fix was made; every fix is there.

    Raises:
        SettingError: there is something at `out`, or it is one file for several splits, or too far from the images.
        DataError: nothing is left of a split.
    """
    findings, fixes = list(findings), Counter(dict.fromkeys(EVERY_FIX, 0))
    for finding in findings:
        if finding.code in ENTRIES:
            fixes[ENTRIES[finding.code]] += 1
    fixed = {
        split: _fixed(records, [one for one in findings if one.split == split and one.image_id is not None], fixes)
        for split, records in splits.items()
    }
    target = Path(out)
    if target.suffix == ".json":
        _write_file(fixed, target)
    else:
        write_dataset(fixed, target, "coco", WriteSettings())
    return dict(fixes)


def _fixed(records: Records, findings: list[Finding], fixes: Counter[str]) -> Records:
    left_out = {one.image_id: IMAGES[one.code] for one in reversed(findings) if one.code in IMAGES}
    turned = {one.image_id for one in findings if one.code == "exif-rotation"}
    repeated = {(one.image_id, one.annotation_ids[1]) for one in findings if one.code == "box-repeated"}
    fixes.update(left_out.values())
    changed: dict[int | str, list[ChangedBox]] = defaultdict(list)
    for change in records.changed:
        changed[change.image_id].append(change)
    images = []
    for record in records.images:
        if record.image_id in left_out:
            continue
        if record.image_id in turned:
            record = _turned(record, changed[record.image_id])
            fixes[TURNED] += 1
        else:
            fixes.update(BOXES[change.what] for change in changed[record.image_id])
        kept = np.array([(record.image_id, number) not in repeated for number in record.annotation_ids], np.bool_)
        fixes[REPEATED] += int((~kept).sum())
        images.append(record.only(kept))
    if not images:
        raise DataError(f"{records.source}: no image is left of it that could be written")
    return records.of_images(images)


def _turned(record: ImageRecord, changed: list[ChangedBox]) -> ImageRecord:
    """The image with all its boxes, as annotated, turned as its EXIF orientation turns its pixels."""
    orientation, numbers = exif_orientation(record.path), {change.annotation_id for change in changed}
    whole = record.only(np.array([number not in numbers for number in record.annotation_ids], dtype=np.bool_))
    raw = [*whole.boxes_xyxy.tolist(), *(change.xyxy for change in changed)]
    upright = [turned_upright(box, record.image_size, orientation) for box in raw]
    clean = clean_boxes(np.array(upright, dtype=np.float64), record.image_size)
    every = replace(
        record, boxes_xyxy=clean.boxes_xyxy, areas=(clean.boxes_xyxy[:, 2:] - clean.boxes_xyxy[:, :2]).prod(1),
        labels=np.array([*whole.labels, *(change.label for change in changed)], np.int64),
        is_ignored=np.array([*whole.is_ignored, *(change.is_ignored for change in changed)], np.bool_),
        annotation_ids=[*whole.annotation_ids, *(change.annotation_id for change in changed)],
    )  # fmt: skip
    return every.only(clean.kept)


def _write_file(splits: Mapping[str, Records], target: Path) -> None:
    if os.path.lexists(target):
        raise SettingError(f"{target} exists; choose another file")
    if len(splits) > 1:
        raise SettingError(f"{target}: one file for {len(splits)} splits ({', '.join(splits)}); give a folder")
    (records,) = splits.values()
    names = {target.stem: [record.file_name for record in records.images]}
    with replacing(target) as temporary:
        WRITERS["coco"](temporary.parent, {target.stem: records}, names)
    try:
        read_coco(target)
    except DataError as error:
        target.unlink()
        place = records.source if records.source.is_dir() else records.source.parent
        raise SettingError(
            f"{target}: the images are not found from there ({error}); write it to {place}, or give a folder"
        ) from error
