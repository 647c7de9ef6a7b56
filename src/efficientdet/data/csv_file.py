"""Reads CSV: a row for each box, `image,xmin,ymin,xmax,ymax,class`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from efficientdet.data.builder import RawBox, RecordsBuilder
from efficientdet.data.check import (
    Entry,
    check_class_names,
    check_file_name,
    find_image_folder,
    is_file,
    measure,
    number_from_text,
    read_text,
    shown,
)
from efficientdet.data.records import EVERY_CLASS, Records
from efficientdet.errors import DataError, MissingSplitError, unknown_name

CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("image", *CORNERS, "class")
# The column of the images, as converters from Pascal VOC call it.
OTHER_NAMES = {"filename": "image"}
# Names by label, one a line, beside a format that has no place for classes without boxes or for their order.
CLASSES_FILE = "classes.txt"


class _Row(NamedTuple):
    image: str
    xyxy: tuple[float, float, float, float] | None
    class_name: str | None
    split: str | None
    is_ignored: bool
    place: str


def read_csv(
    path: str | Path,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    image_folder: str | Path | None = None,
    skip_missing: bool = False,
) -> Records:
    """Read a CSV file with a header and a row for each box, and measure its images (headers only).

    Columns, in any order: `image` (or `filename`), `xmin`, `ymin`, `xmax`, `ymax` (pixels, from 0, right and bottom
    edges exclusive), `class`; optional: `split`, and `ignored` (1 for an ignored region, whose class may be empty: then
    it holds for every class). Other columns are not read. A row without box and class names an image without objects.

    Args:
        path: the file.
        split: read the rows of this split alone, if there is a column `split`.
        class_names: names by label; by default those of `classes.txt` beside the file, else those found, sorted.
        image_folder: folder of the images; by default `images` beside the file, else the file's folder.
        skip_missing: leave out images whose file is missing, and count them.

    Returns:
        Records in order of the file; image ids count from 1, category ids equal the labels.

    Raises:
        MissingSplitError: no row is of the split.
        DataError: a row is at fault; names file, line and field.
    """
    path = Path(path)
    rows = list(_rows(path))
    names = read_class_names(path, rows) if class_names is None else class_names
    names = check_class_names(names, f"{path}: class names")
    labels = {name: label for label, name in enumerate(names)}
    images = _by_image(row for row in rows if split is None or row.split in (split, None))
    if not images and split is not None and rows:
        raise MissingSplitError(f"{path}: no row is of the split '{split}'")
    folder = Path(image_folder) if image_folder is not None else find_image_folder(_folders(path), list(images))
    builder = RecordsBuilder(path, folder, skip_missing)
    for image_id, (name, of_image) in enumerate(images.items(), start=1):
        with Entry(image_id, file=folder / name):
            boxes = [
                RawBox(row.xyxy, _label(row, labels), f"{image_id}/{number}", row.is_ignored)
                for number, row in enumerate(of_image, start=1)
                if row.xyxy is not None
            ]
            image = builder.locate(name, of_image[0].place, len(boxes))
            if image is not None:
                builder.add(image_id, image, measure(image, of_image[0].place), boxes)
    return builder.finish(names, range(len(names)))


def read_class_names(path: Path, rows: Sequence[_Row] | None = None) -> list[str]:
    """Class names of a CSV file: those of `classes.txt` beside it, else those of its rows, sorted."""
    listed = listed_class_names(path.parent)
    if listed is not None:
        return listed
    return sorted({row.class_name for row in (_rows(path) if rows is None else rows) if row.class_name})


def listed_class_names(folder: Path) -> list[str] | None:
    """The lines of `classes.txt` in a folder; None if there is no such file."""
    if not is_file(folder / CLASSES_FILE):
        return None
    return [line.strip() for line in read_text(folder / CLASSES_FILE).splitlines() if line.strip()]


def splits_of(path: Path) -> set[str]:
    """The splits that the rows of a file name; none if it has no column `split`."""
    return {row.split for row in _rows(path) if row.split}


def _folders(path: Path) -> list[Path]:
    return [path.parent / "images", path.parent, path.parent / path.stem]


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    header = [name.strip().lower() for name in next(reader, [])]
    header = [OTHER_NAMES.get(name, name) for name in header]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{path}: line 1: the header lacks {', '.join(missing)}; start the file with {','.join(COLUMNS)}"
        )
    return header


def _rows(path: Path) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(read_text(path)))
    try:
        header = _header(path, reader)
        for texts in reader:
            if texts:
                with Entry(file=path) as one:
                    row = _row(header, texts, f"{path}: line {reader.line_num}")
                if one.fault is None:
                    yield row
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}; is a quote not closed?") from error


def _row(header: list[str], texts: list[str], place: str) -> _Row:
    if len(texts) != len(header):
        raise DataError(f"{place}: {len(texts)} fields, but the header has {len(header)}; quote commas in names")
    fields = {name: text.strip() for name, text in zip(header, texts, strict=True)}
    if not fields["image"]:
        raise DataError(f"{place}, field 'image': empty; write the image's file name")
    check_file_name(fields["image"], place, "image")
    ignored = fields.get("ignored") or "0"
    if ignored not in ("0", "1"):
        raise DataError(f"{place}, field 'ignored': {shown(ignored)} is neither 0 nor 1; write one of them")
    name, corners = fields["class"] or None, [fields[corner] for corner in CORNERS]
    if not any(corners) and name is None:
        return _Row(fields["image"], None, None, fields.get("split"), False, place)
    numbers = []
    for corner, text in zip(CORNERS, corners, strict=True):
        number = number_from_text(text)
        if number is None:
            fault = f"{shown(text)} is not a finite number" if text else "empty"
            raise DataError(f"{place}, field '{corner}': {fault}; write a pixel coordinate")
        numbers.append(number)
    if name is None and ignored == "0":
        raise DataError(f"{place}, field 'class': empty; write the class, or 1 into a column 'ignored'")
    x1, y1, x2, y2 = numbers
    return _Row(fields["image"], (x1, y1, x2, y2), name, fields.get("split"), ignored == "1", place)


def _by_image(rows: Iterator[_Row]) -> dict[str, list[_Row]]:
    images: dict[str, list[_Row]] = {}
    for row in rows:
        images.setdefault(row.image, []).append(row)
    return images


def _label(row: _Row, labels: dict[str, int]) -> int:
    if row.class_name is None:
        return EVERY_CLASS
    if row.class_name not in labels:
        fault = unknown_name("class", row.class_name, labels)
        raise DataError(f"{row.place}, field 'class': {fault} Correct the row or add the class.")
    return labels[row.class_name]
