"""Annotations that are all written alike, as tools write boxes, read as a table of numbers by pyarrow.

Such a list, `[{"id": 1, "bbox": [1, 2, 3, 4]}, {"id": 2, ...}]`, is the same text again and again but for its numbers.
That this is so is seen by leaving out the digits: whatever else stands there must repeat. What is not so is left to
`coco_columns.py`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

DIGITS = b"0123456789.-"
KEPT = DIGITS + b",}"
DELETED = bytes(byte for byte in range(256) if byte not in KEPT)
ONE_A_LINE = bytes.maketrans(b"}", b"\n")
WHOLE = ("id", "image_id", "category_id", "iscrowd", "ignore")
FLAGS = ("iscrowd", "ignore")
NEEDED = ("id", "image_id", "category_id")
KEY = b'"annotations": ['
# Shorter lists are not worth it.
SHORTEST = 100_000


class FlatAnnotations(NamedTuple):
    """Annotations as columns, and the file's text with an empty list in their place."""

    columns: dict[str, Any]
    rest: bytes


def annotation_columns(data: bytes) -> FlatAnnotations | None:
    """The annotations of a COCO file, if all are written alike and pyarrow is installed; else None."""
    start = data.find(KEY) + len(KEY)
    end = data.find(b"}]", start) + 1
    if start < len(KEY) or end - start < SHORTEST:
        return None
    text = data[start:end]
    columns = _first(text)
    if columns is None or not _all_alike(text):
        return None
    table = _table(text, columns)
    if table is None or not all(((table[name] | 1) == 1).all() for name in FLAGS if name in table):
        return None
    zeros = np.zeros(len(table["id"]))
    optional = {"area": zeros, "iscrowd": zeros, "ignore": zeros}
    return FlatAnnotations({**optional, **table}, data[:start] + data[end:])


def _first(text: bytes) -> list[str] | None:
    """Names of the numbers of the first annotation, in order; None if it has anything but numbers."""
    try:
        first = json.loads(text[: text.find(b"}") + 1])
    except ValueError:
        return None
    names = []
    for name, value in first.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
            return None
        names += [f"{name}.{index}" for index in range(len(value))] if isinstance(value, list) else [name]
    has_all = all(name in names for name in (*NEEDED, *(f"bbox.{side}" for side in range(4)))) and "bbox.4" not in names
    return names if has_all and len(set(names)) == len(names) else None


def _all_alike(text: bytes) -> bool:
    """Whether the annotations differ in their digits alone."""
    skeleton = text.translate(None, DIGITS)
    unit = skeleton[: skeleton.find(b"}") + 1]
    gap = skeleton[len(unit) : skeleton.find(b"{", 1)] if skeleton.count(b"{", 0, 10_000) > 1 else b","
    count = skeleton.count(unit + gap) + 1
    return gap.strip() == b"," and len(skeleton) == count * len(unit + gap) - len(gap) and skeleton.endswith(unit)


def _table(text: bytes, names: list[str]) -> dict[str, Any] | None:
    """The numbers by column; None if one cannot be read as a number."""
    try:
        import pyarrow
        from pyarrow import csv
    except ImportError:
        return None
    # A comma, which separates the annotations, begins every line but the first.
    lines = b"," + text.translate(ONE_A_LINE, DELETED)
    types = {name: pyarrow.int64() if name in WHOLE else pyarrow.float64() for name in names}
    try:
        table = csv.read_csv(
            pyarrow.BufferReader(lines),
            csv.ReadOptions(column_names=["", *names]),
            convert_options=csv.ConvertOptions(include_columns=names, column_types=types),
        )
    except pyarrow.ArrowInvalid:
        return None
    if any(table[name].null_count for name in names):
        return None
    return {name: table[name].to_numpy() for name in names}
