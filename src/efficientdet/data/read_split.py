"""Finds the annotations of a split, whatever their format, and reads them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from efficientdet.data import csv_file, parquet
from efficientdet.data.coco import read_coco
from efficientdet.data.csv_file import read_csv, splits_of
from efficientdet.data.fields import is_file, is_folder
from efficientdet.data.parquet import SAVED_STATE, BoxFormat, read_parquet, split_files
from efficientdet.data.records import Records
from efficientdet.data.settings import Format
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
CSV_FILES = ("{s}.csv", "annotations/{s}.csv", "{s}/_annotations.csv")
# One file for all splits, with a column `split`.
CSV_OF_ALL = "annotations.csv"
SPLITS = ("train", "val", "test")
OTHER_NAMES = {"val": ("valid", "validation"), "valid": ("val",)}


class Found(NamedTuple):
    """The annotations of a split: their format, and a function that reads them, which takes `skip_missing`."""

    format: Format
    read: Callable[..., Records]


def read_split(data: str | Path, split: str, skip_missing: bool = False, *, box_format: BoxFormat = "xywh") -> Records:
    """Read one split of a dataset: COCO JSON, Pascal VOC, YOLO, CSV, parquet or what `datasets` saved.

    Args:
        data: the dataset's folder, or a file: COCO JSON or parquet (which then is the split), CSV, or a YOLO data.yaml.
        split: `train`, `val`, `test` or another name that the folder uses.
        skip_missing: leave out images whose file is missing, and count them.
        box_format: see `read_parquet`; of no meaning for other formats.

    Returns:
        The records.

    Raises:
        MissingSplitError: there are no annotations of the split; says where they were sought.
        DataError: a file is at fault; names file, place and field.
    """
    found = find_split(data, split)
    more: dict[str, Any] = {"box_format": box_format} if found.format == "parquet" else {}
    return found.read(skip_missing=skip_missing, **more)


def read_splits(data: str | Path, skip_missing: bool = False, *, box_format: BoxFormat = "xywh") -> dict[str, Records]:
    """Every split of a dataset, `train`, `val` and `test`, that it has; a single file is one split, named after it.

    Raises:
        MissingSplitError: there is none; says where they were sought.
        DataError: a file is at fault; names file, place and field.
    """
    if not has_several_splits(data):
        name = Path(data).stem.rpartition("_")[2]
        return {name if name in SPLITS else "train": read_split(data, "train", skip_missing, box_format=box_format)}
    found = {}
    for split in SPLITS:
        with suppress(MissingSplitError):
            found[split] = read_split(data, split, skip_missing, box_format=box_format)
    return found or {"train": read_split(data, "train", skip_missing, box_format=box_format)}


def has_several_splits(data: str | Path) -> bool:
    """Whether a dataset can have splits: a folder, data.yaml, or a CSV file with such a column."""
    root = Path(data)
    if not is_file(root):
        return not is_file(root / SAVED_STATE)
    return root.suffix in (".yaml", ".yml") or (root.suffix.lower() == ".csv" and bool(splits_of(root)))


def find_split(data: str | Path, split: str) -> Found:
    """The annotations of a split, found and not yet read; see `read_split`."""
    root = Path(data)
    if is_file(root):
        return _of_file(root, split)
    if not is_folder(root):
        raise DataError(f"{printable(root)}: no such dataset; give its folder or its annotation file")
    if is_file(root / SAVED_STATE):
        return Found("parquet", functools.partial(read_parquet, root))
    for name in (split, *OTHER_NAMES.get(split, ())):
        found = next(_below(root, name), None)
        if found is not None:
            return found
    if any(is_file(root / name) for name in CONFIG_NAMES):
        return Found("yolo", functools.partial(read_yolo, root, split))
    sought = ", ".join(pattern.format(s=split) for pattern in COCO_FILES)
    also = "".join(f"; and the same for '{name}'" for name in OTHER_NAMES.get(split, ()))
    raise MissingSplitError(
        f"{root}: no annotations of the split '{printable(split)}'. Sought as COCO JSON: {sought}; as Pascal VOC: "
        f"ImageSets/Main/{split}.txt; as YOLO: data.yaml, images/{split}, {split}/images; as CSV: {split}.csv, "
        f"{CSV_OF_ALL}; as parquet: data/{split}-*.parquet, {split}*.parquet; as saved by datasets: "
        f"{split}/{SAVED_STATE}{also}"
    )


def _of_file(file: Path, split: str) -> Found:
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return Found("yolo", functools.partial(read_yolo, file, split))
    if suffix == ".csv":
        named = splits_of(file)
        name = next((name for name in (split, *OTHER_NAMES.get(split, ())) if name in named), split)
        return Found("csv", functools.partial(read_csv, file, name))
    if suffix == ".parquet":
        return Found("parquet", functools.partial(read_parquet, file))
    return Found("coco", functools.partial(read_coco, file))


def _below(root: Path, split: str) -> Iterator[Found]:
    """The ways to read a split of a folder, the first first. All splits of a folder have the same classes."""
    for pattern in COCO_FILES:
        file = root / pattern.format(s=split)
        if is_file(file):
            yield Found("coco", functools.partial(read_coco, file))
    for pattern in CSV_FILES:
        table = root / pattern.format(s=split)
        if is_file(table):
            every = [root / one.format(s=name) for name in _every_split_name() for one in (*CSV_FILES, CSV_OF_ALL)]
            names = csv_file.class_names_of([file for file in dict.fromkeys(every) if is_file(file)], root)
            yield Found("csv", functools.partial(read_csv, table, class_names=names))
    table_of_all = root / CSV_OF_ALL
    if is_file(table_of_all) and split in (splits_of(table_of_all) or {"train"}):
        yield Found("csv", functools.partial(read_csv, table_of_all, split))
    if is_file(root / "ImageSets" / "Main" / f"{split}.txt"):
        yield Found("voc", functools.partial(read_voc, root, split=split))
    if any(is_folder(root / first / second) for first, second in (("images", split), (split, "images"))):
        yield Found("yolo", functools.partial(read_yolo, root, split))
    files = split_files(root, split)
    if files:
        every = [file for name in _every_split_name() for file in split_files(root, name)]
        names = parquet.class_names_of(every, root)
        yield Found("parquet", functools.partial(read_parquet, files, class_names=names))


def _every_split_name() -> tuple[str, ...]:
    return tuple(dict.fromkeys([*SPLITS, *(name for names in OTHER_NAMES.values() for name in names)]))
