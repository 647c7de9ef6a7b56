"""Reads a COCO file without fault straight into columns, several times as fast as through dictionaries.

msgspec checks types as it parses, and skips what is not asked for, such as segmentations. Whatever is out of order is
left to `coco.py`, which names it; of a sound file both read the same.
"""

from __future__ import annotations

import gc
import itertools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.builder import RawBoxes, RawImages
from efficientdet.data.flat_json import annotation_columns
from efficientdet.data.records import EVERY_CLASS

# Of an ignored region of no class, which has no category.
NO_CATEGORY = -(2**52)
# Fields with their types and, if they may be left out, their defaults. Texts as ids are left to the other reader.
IMAGE: list[Any] = [("id", int), ("file_name", str), ("width", int | None, None), ("height", int | None, None)]
ANNOTATION: list[Any] = [
    ("id", int),
    ("image_id", int),
    ("bbox", tuple[float, float, float, float]),
    ("category_id", int, NO_CATEGORY),
    ("area", float, 0.0),
    ("iscrowd", Literal[0, 1], 0),
    ("ignore", Literal[0, 1], 0),
]
NUMBERS = operator.attrgetter("id", "image_id", "category_id", "area", "iscrowd", "ignore")
BOX = operator.attrgetter("bbox")
# Names of the columns.
FIELDS = ("id", "image_id", "category_id", "area", "iscrowd", "ignore", "bbox.0", "bbox.1", "bbox.2", "bbox.3")
# Ids up to here are looked up in a table.
LARGEST_TABLE = 2**23
# Whole numbers up to here are exact as float64.
LARGEST = 2.0**53


class CocoColumns(NamedTuple):
    """A COCO file in columns.

    Attributes:
        categories: as in the file.
        images: N images; (height, width) as stated, 0 where they are not.
        boxes: in the order of their images.
    """

    categories: list[Any]
    images: RawImages
    boxes: RawBoxes


def read_columns(path: Path) -> CocoColumns | None:
    """The columns of a COCO file; None if it has a fault, or if msgspec is not installed."""
    try:
        import msgspec

        data = path.read_bytes()
    except (ImportError, OSError):
        return None
    # Made here, since a class statement would need msgspec to be installed.
    image = msgspec.defstruct("Image", IMAGE, gc=False)
    annotation = msgspec.defstruct("Annotation", ANNOTATION, gc=False)
    lists = [("images", list[image]), ("annotations", list[annotation]), ("categories", list[Any])]  # type: ignore[valid-type]
    file = msgspec.defstruct("File", lists)
    with _without_garbage_collection():
        found = annotation_columns(data)
        try:
            content: Any = msgspec.json.decode(data if found is None else found.rest, type=file)
            if found is not None and content.annotations:  # what was found was another list of that name
                return None
            images = _images(content.images)
            columns = found.columns if found is not None else _columns(content.annotations)
            boxes = _boxes(columns, content.categories, images) if images is not None and columns is not None else None
        # msgspec's own errors are ValueErrors; some of its numbers are too large for numpy.
        except (ValueError, RecursionError, OverflowError):
            return None
    return CocoColumns(content.categories, boxes[0], boxes[1]) if boxes is not None else None


def _columns(annotations: list[Any]) -> dict[str, Any] | None:
    """The fields of annotations as arrays."""
    count = len(annotations)
    numbers, boxes_xywh = (
        np.fromiter(
            itertools.chain.from_iterable(map(get, annotations)), dtype=np.float64, count=columns * count
        ).reshape(-1, columns)
        for get, columns in ((NUMBERS, 6), (BOX, 4))
    )
    if not (np.isfinite(numbers).all() and (np.abs(numbers[:, :3]) < LARGEST).all()):
        return None
    ids = numbers[:, :3].astype(np.int64).T
    return dict(zip(FIELDS, (*ids, *numbers[:, 3:].T, *boxes_xywh.T), strict=True))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of new objects would set it off again and again, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _images(images: list[Any]) -> RawImages | None:
    names = [image.file_name for image in images]
    sizes = [(image.height or 0, image.width or 0) for image in images]
    # A size is stated whole or not at all.
    is_sound = all(
        (image.width is None and image.height is None) or ((image.width or 0) > 0 and (image.height or 0) > 0)
        for image in images
    )
    try:
        ids = np.fromiter([image.id for image in images], dtype=np.int64, count=len(images))
    except OverflowError:
        return None
    if not len(ids) or not is_sound or not all(names) or not _are_unique(ids):
        return None
    return RawImages(names, ids, np.array(sizes, dtype=np.int64), np.zeros(len(ids), dtype=np.int64))


def _are_unique(ids: NDArray[np.int64]) -> bool:
    return bool((np.diff(ids) > 0).all() or (np.diff(np.sort(ids)) > 0).all())


def _boxes(columns: dict[str, Any], categories: list[Any], images: RawImages) -> tuple[RawImages, RawBoxes] | None:
    ids, image_ids, category_of_box, areas, is_crowd, is_mask, *xywh = (columns[name] for name in FIELDS)
    is_ignored = (is_crowd + is_mask) > 0
    try:
        category_ids = np.sort(np.array([int(category["id"]) for category in categories], dtype=np.int64))
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    image_of_box, is_known = _find(np.asarray(images.image_ids), image_ids)
    labels, has_category = _find(category_ids, category_of_box)
    has_none = (category_of_box == NO_CATEGORY) & is_ignored
    is_sound = is_known.all() and (has_category | has_none).all() and _are_unique(ids)
    if not is_sound or not all(np.isfinite(column).all() for column in (*xywh, areas)):
        return None
    labels[has_none] = EVERY_CLASS
    order = _order(image_of_box)
    xyxy = np.empty((len(order), 4))
    with np.errstate(over="ignore"):
        for side in range(4):
            xyxy[:, side] = xywh[side][order]
            if side >= 2:
                xyxy[:, side] += xyxy[:, side - 2]
    return images._replace(box_counts=np.bincount(image_of_box, minlength=len(images.sizes))), RawBoxes(
        xyxy, labels[order], ids[order], is_ignored[order], areas[order]
    )  # fmt: skip


def _find(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each of the wanted numbers stands among the known, and whether it is there."""
    if not len(known) or not len(wanted):
        return np.zeros_like(wanted), np.zeros(len(wanted), dtype=np.bool_)
    if 0 <= known.min() and known.max() < LARGEST_TABLE:
        # A table is several times as fast as a search.
        table = np.full(known.max() + 2, -1, dtype=np.int64)
        table[known] = np.arange(len(known))
        place = table[np.where((wanted >= 0) & (wanted < len(table)), wanted, -1)]
        return np.maximum(place, 0), place >= 0
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    return place, known[place] == wanted


def _order(image_of_box: NDArray[np.int64]) -> NDArray[np.int64]:
    """The boxes in order of their images, those of an image as in the file: several times as fast as a stable sort."""
    count = max(1, len(image_of_box))
    order: NDArray[np.int64] = np.sort(image_of_box * count + np.arange(len(image_of_box))) % count
    return order
