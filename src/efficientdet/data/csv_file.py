"""Reads CSV: a row for each box, `image,xmin,ymin,xmax,ymax,class`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientdet.data.builder import RawBox, RawImage, build
from efficientdet.data.fields import (
    Entry,
    check_class_names,
    coordinate,
    flag,
    listed_class_names,
    read_text,
)
from efficientdet.data.records import Records
from efficientdet.errors import DataError, MissingSplitError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("image", *CORNERS, "class")
# The column of the images, as converters from Pascal VOC call it.
OTHER_NAMES = {"filename": "image"}


class _Row(NamedTuple):
    image: str
    split: str | None
    box: RawBox | None
    place: str

    @property
    def class_name(self) -> Any:
        return self.box and self.box.label


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
    names = class_names or listed_class_names(path.parent) or sorted({row.class_name for row in rows if row.class_name})
    by_image: dict[str, list[_Row]] = {}
    for row in rows:
        if split is None or row.split in (split, None):
            by_image.setdefault(row.image, []).append(row)
    if not by_image and split is not None and rows:
        raise MissingSplitError(f"{path}: no row is of the split '{split}'")
    images = [
        RawImage(name, of_image[0].place, [row.box for row in of_image if row.box is not None])
        for name, of_image in by_image.items()
    ]
    folders = [path.parent / "images", path.parent, path.parent / path.stem]
    folders = folders if image_folder is None else [Path(image_folder)]
    names = check_class_names(names, f"{path}: class names")
    return build(path, folders, images, names, skip_missing=skip_missing, field="image")


def class_names_of(files: Sequence[Path], folder: Path) -> list[str]:
    """Class names of CSV files: those of `classes.txt` in the folder, or beside one, else those of the rows, sorted."""
    for place in dict.fromkeys([folder, *(file.parent for file in files)]):
        if names := listed_class_names(place):
            return names
    return sorted({row.class_name for file in files for row in _rows(file) if row.class_name})


def splits_of(path: Path) -> set[str]:
    """The splits that the rows of a file name; none if it has no column `split`."""
    return {row.split for row in _rows(path) if row.split}


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
    is_ignored = flag(fields.get("ignored") or "", place, "ignored")
    name, split = fields["class"] or None, fields.get("split")
    if name is None and not any(fields[corner] for corner in CORNERS):
        return _Row(fields["image"], split, None, place)
    x1, y1, x2, y2 = (coordinate(fields[corner], place, corner) for corner in CORNERS)
    if name is None and not is_ignored:
        raise DataError(f"{place}, field 'class': empty; write the class, or 1 into a column 'ignored'")
    box = RawBox((x1, y1, x2, y2), name, is_ignored=is_ignored, place=f"{place}, field 'class'")
    return _Row(fields["image"], split, box, place)
