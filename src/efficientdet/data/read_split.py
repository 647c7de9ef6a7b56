"""Finds the annotations of a split, whatever their format, and reads them."""

from __future__ import annotations

from pathlib import Path

from efficientdet.data.check import is_file, is_folder
from efficientdet.data.coco import read_coco
from efficientdet.data.records import Records
from efficientdet.data.voc import read_voc
from efficientdet.data.yolo import CONFIG_NAMES, read_yolo
from efficientdet.errors import DataError, MissingSplitError
from efficientdet.text import printable

# COCO annotations of a split, below the dataset's folder; {s} is the split.
COCO_FILES = (
    "{s}.json",
    "annotations/{s}.json",
    "annotations/instances_{s}.json",
    "annotations/instances_{s}2017.json",
    "{s}/_annotations.coco.json",
    "{s}/annotations.json",
)
OTHER_NAMES = {"val": ("valid", "validation"), "valid": ("val",)}


def read_split(data: str | Path, split: str, skip_missing: bool = False) -> Records:
    """Read one split of a dataset: COCO JSON, Pascal VOC or YOLO.

    Args:
        data: the dataset's folder, a COCO JSON file (which then is the split), or a YOLO data.yaml.
        split: `train`, `val`, `test` or another name that the folder uses.
        skip_missing: leave out images whose file is missing, and count them.

    Returns:
        The records.

    Raises:
        MissingSplitError: there are no annotations of the split; says where they were sought.
        DataError: a file is at fault; names file, place and field.
    """
    root = Path(data)
    if is_file(root):
        if root.suffix in (".yaml", ".yml"):
            return read_yolo(root, split, skip_missing=skip_missing)
        return read_coco(root, skip_missing=skip_missing)
    if not is_folder(root):
        raise DataError(f"{printable(root)}: no such dataset; give its folder or its annotation file")
    for name in (split, *OTHER_NAMES.get(split, ())):
        for pattern in COCO_FILES:
            file = root / pattern.format(s=name)
            if is_file(file):
                return read_coco(file, skip_missing=skip_missing)
        if is_file(root / "ImageSets" / "Main" / f"{name}.txt"):
            return _read_voc(root, name, skip_missing)
        if any(is_folder(root / first / second) for first, second in (("images", name), (name, "images"))):
            return read_yolo(root, name, skip_missing=skip_missing)
    if any(is_file(root / name) for name in CONFIG_NAMES):
        return read_yolo(root, split, skip_missing=skip_missing)
    sought = ", ".join(pattern.format(s=split) for pattern in COCO_FILES)
    also = "".join(f"; and the same for '{name}'" for name in OTHER_NAMES.get(split, ()))
    raise MissingSplitError(
        f"{root}: no annotations of the split '{printable(split)}'. Sought as COCO JSON: {sought}; as Pascal VOC: "
        f"ImageSets/Main/{split}.txt; as YOLO: data.yaml, images/{split}, {split}/images{also}"
    )


def _read_voc(root: Path, split: str, skip_missing: bool) -> Records:
    """One split, with the classes of all splits: one without boxes of a class must not shift its labels."""
    class_names = read_voc(root, skip_missing=True).class_names
    return read_voc(root, class_names, split=split, skip_missing=skip_missing)
