"""Writes datasets: COCO JSON, Pascal VOC, YOLO, CSV, parquet. What a format has no place for is counted."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from efficientdet.atomic_write import replacing_folder
from efficientdet.data.parquet import suffix_of
from efficientdet.data.read_split import read_splits
from efficientdet.data.records import (
    BOXES_CLIPPED,
    BOXES_DEGENERATE,
    BOXES_OF_SKIPPED,
    BOXES_OUTSIDE,
    EVERY_CLASS,
    IMAGES_SKIPPED,
    Records,
)
from efficientdet.data.settings import Format, WriteSettings
from efficientdet.data.voc import SMALLEST_SIDE as VOC_SMALLEST_SIDE
from efficientdet.data.write_formats import WRITERS, image_name, shortest
from efficientdet.errors import DataError, SettingError
from efficientdet.images.find import image_suffixes
from efficientdet.text import printable

# Counts of a reader that say what is no longer there, or not as it was.
LOST_BY_READING = (BOXES_CLIPPED, BOXES_OUTSIDE, BOXES_DEGENERATE, BOXES_OF_SKIPPED, IMAGES_SKIPPED)
RENAMED = "images renamed, since two had one name"
AREAS, CATEGORY_IDS, IMAGE_IDS = "areas other than the box's", "category ids", "image ids"
THIN = "boxes at most one pixel wide or high"
# Characters that a file name cannot have in some format, and those that end a name in VOC's lists of images.
UNFIT, SPACE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]"), re.compile(r"[\s/]+")
# What each format has no place for.
NO_PLACE: Mapping[Format, tuple[str, ...]] = {
    "coco": (),
    "voc": (AREAS, CATEGORY_IDS, IMAGE_IDS, THIN),
    "yolo": (AREAS, CATEGORY_IDS, IMAGE_IDS),
    "csv": (AREAS, CATEGORY_IDS, IMAGE_IDS),
    "parquet": (AREAS, CATEGORY_IDS),
}


@dataclass(frozen=True)
class DatasetReport:
    """A dataset that was written.

    Attributes:
        folder: where it is.
        format: coco, voc, yolo, csv or parquet.
        splits: numbers of images, boxes and ignored regions by split.
        class_names: by label.
        lost: what is no longer there or not as it was, and how often; only what is.
        notes: what else is worth knowing, a line each.
    """

    folder: Path
    format: Format
    splits: dict[str, dict[str, int]]
    class_names: tuple[str, ...]
    lost: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain types by attribute name, ready for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def write_dataset(
    splits: Mapping[str, Records],
    out: str | Path,
    to: Format,
    settings: WriteSettings,
    *,
    lost: Mapping[str, int] | None = None,
    notes: list[str] | None = None,
    more_files: Mapping[str, str] | None = None,
) -> DatasetReport:
    """Write a dataset, whole or not at all, and read it back to see that nothing else is lost than what is counted.

    Args:
        splits: records by split, with the same classes.
        out: the folder to write.
        to: the format.
        settings: how.
        lost: what was lost before, for the report.
        notes: of the report.
        more_files: texts by file name that belong to the dataset.

    Raises:
        SettingError: `out` exists and is not to be replaced, or holds the images that are to be written.
        DataError: the splits disagree on the classes.
        OSError: the disk is full, or a file cannot be written.
    """
    out = Path(out)
    class_names = same_classes(list(splits.values()))
    _check_names(class_names, to)
    _spare_images(splits, out)
    lost = {name: int(count) for name, count in (lost or {}).items() if count}
    no_place = {name: sum(COUNT[name](records) for records in splits.values()) for name in NO_PLACE[to]}
    if CATEGORY_IDS in no_place:  # the same in every split
        no_place[CATEGORY_IDS] = _count_category_ids(next(iter(splits.values())))
    lost |= {name: count for name, count in no_place.items() if count}
    with replacing_folder(out, settings.overwrite) as temporary:
        names, renamed = _names(splits, to)
        for split, records in splits.items():
            for record, name in zip(records.images, names[split], strict=True):
                if to != "parquet":
                    _place(record.path, temporary / image_name(to, split, name), settings.hard_links)
        WRITERS[to](temporary, splits, names)
        for name, text in (more_files or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        _prove(splits, temporary, to)
    if renamed:
        lost[RENAMED] = renamed
    counts = {
        split: {
            "images": len(records), "boxes": records.training_boxes,
            "ignored regions": int(records.table.is_ignored.sum()),
        }
        for split, records in splits.items()
    }  # fmt: skip
    return DatasetReport(out, to, counts, class_names, lost, notes or [])


def same_classes(parts: Sequence[Records]) -> tuple[str, ...]:
    """The class names of all parts.

    Raises:
        DataError: they differ.
    """
    names = parts[0].class_names
    for part in parts:
        if part.class_names != names:
            raise DataError(
                f"{part.source}: its classes {list(part.class_names)} are not those of {parts[0].source}, "
                f"{list(names)}; list the same ones in both"
            )
    return names


def _check_names(class_names: tuple[str, ...], to: Format) -> None:
    for name in class_names:
        if to in ("voc", "csv") and (name != name.strip() or UNFIT.search(name)):
            fault = "rename the class, without spaces around its name"
            raise DataError(f"class name '{printable(name)}' cannot be written as {to}: {fault}")


def _spare_images(splits: Mapping[str, Records], out: Path) -> None:
    """Refuse to replace a folder that holds what is to be copied from it."""
    there = out.resolve()
    for records in splits.values():
        if any(record.path.resolve().is_relative_to(there) for record in records.images[:1]):
            raise SettingError(f"{out} holds the images of {records.source}; choose another folder to write to")


def _names(splits: Mapping[str, Records], to: Format) -> tuple[dict[str, list[str]], int]:
    """A name for each image, and how many had to get another than their own.

    Two images must differ in their names; in VOC and YOLO, where annotations are named after them, but for the suffix.
    """
    names: dict[str, list[str]] = {}
    renamed, taken = 0, set[str]()
    for split, records in splits.items():
        if to in ("coco", "yolo"):  # each split has folders of its own
            taken = set()
        names[split] = []
        for record in records.images:
            own = UNFIT.sub("_", record.file_name)
            own = SPACE.sub("_", own) if to == "voc" else own.strip()
            if to == "yolo" and PurePosixPath(own).suffix.lower() not in image_suffixes():
                own += suffix_of(record.path.read_bytes()[:16])
            name, number = own, 1
            while (key := _key(name, to)) in taken:
                number += 1
                name = str(PurePosixPath(own).with_stem(f"{PurePosixPath(own).stem}_{number}"))
            taken.add(key)
            renamed += name != (record.file_name.replace("/", "_") if to == "voc" else record.file_name)
            names[split].append(name)
    return names, renamed


def _key(name: str, to: Format) -> str:
    # Some file systems take upper and lower case for the same.
    return (str(PurePosixPath(name).with_suffix("")) if to in ("voc", "yolo") else name).lower()


def _place(source: Path, target: Path, hard_links: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if hard_links:
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(source, target)


def _count_areas(records: Records) -> int:
    sides, areas = records.table.boxes_xyxy[:, 2:] - records.table.boxes_xyxy[:, :2], records.table.areas
    # COCO's areas are rounded.
    return int((np.abs(sides.prod(1) - areas) > 0.01 * areas + 0.5).sum())


def _count_category_ids(records: Records) -> int:
    return sum(category_id != label for label, category_id in enumerate(records.category_ids))


def _count_image_ids(records: Records) -> int:
    return sum(record.image_id != number for number, record in enumerate(records.images, start=1))


def _count_thin(records: Records) -> int:
    """Boxes that readers of VOC drop, in the numbers that they read."""
    boxes = map(shortest, records.table.boxes_xyxy)
    return sum(min(x2 - (x1 + 1 - 1), y2 - (y1 + 1 - 1)) <= VOC_SMALLEST_SIDE for x1, y1, x2, y2 in boxes)


COUNT: dict[str, Callable[[Records], int]] = {
    AREAS: _count_areas, CATEGORY_IDS: _count_category_ids, IMAGE_IDS: _count_image_ids, THIN: _count_thin,
}  # fmt: skip


def _prove(splits: Mapping[str, Records], folder: Path, to: Format) -> None:
    """Read what was written, and compare the numbers of images and boxes of each class.

    Raises:
        DataError: they differ from what was to be written, which is a fault of this package.
    """
    back = read_splits(folder) if any(split in ("train", "val", "test") for split in splits) else {}
    missing, class_names = 0, next(iter(splits.values())).class_names
    for split, records in back.items():
        before, after = _by_class(splits[split]), _by_class(records)
        missing += int((before - after).sum())
        if len(records) != len(splits[split]) or records.class_names != class_names or (after > before).any():
            missing = -1
            break
    if missing != sum(_count_thin(splits[split]) for split in back if to == "voc"):
        raise DataError(
            f"{folder}: what was written differs from what was read in its images, classes or boxes; nothing is kept. "
            "Please report this with the annotation file"
        )


def _by_class(records: Records) -> Any:
    return np.bincount(records.table.labels - EVERY_CLASS, minlength=len(records.class_names) + 1)
