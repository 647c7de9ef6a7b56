"""Reads COCO JSON.

A file without fault goes straight into columns, several times as fast as through dictionaries: msgspec checks types as
it parses, and skips what is not asked for, such as segmentations. Of any other file each entry is checked, and what is
wrong is named. Of a sound file both read the same.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.builder import RawBox, RawImage, build, columns_of
from efficientdet.data.fields import Entry, check_class_names, read_text, shown
from efficientdet.data.records import EVERY_CLASS, Columns, Records
from efficientdet.errors import DataError
from efficientdet.text import printable

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
# Ids up to here are looked up in a table.
LARGEST_TABLE = 2**23
# Whole numbers up to here are exact as float64.
LARGEST = 2.0**53


KEYS = ("images", "annotations", "categories")


def read_columns(path: Path) -> tuple[list[Any], Columns] | None:
    """Categories and columns of a COCO file; None if it has a fault, or if msgspec is not installed."""
    try:
        import msgspec

        data = path.read_bytes()
    except (ImportError, OSError):
        return None
    # Made here, since a class statement would need msgspec to be installed.
    image = msgspec.defstruct("Image", IMAGE, gc=False)
    annotation = msgspec.defstruct("Annotation", ANNOTATION, gc=False)
    lists = [("images", list[image]), ("annotations", list[annotation]), ("categories", list[Any])]  # type: ignore[valid-type]
    with _without_garbage_collection():
        try:
            content: Any = msgspec.json.decode(data, type=msgspec.defstruct("File", lists))
            return _columns(content, path)
        # msgspec's own errors are ValueErrors; some of its numbers are too large for numpy.
        except (ValueError, RecursionError, OverflowError, LookupError, TypeError):
            return None


def _columns(content: Any, path: Path) -> tuple[list[Any], Columns] | None:
    images, annotations = content.images, content.annotations
    names = [image.file_name for image in images]
    ids = np.fromiter((image.id for image in images), dtype=np.int64, count=len(images))
    sizes = np.array([(image.height or 0, image.width or 0) for image in images], dtype=np.int64).reshape(-1, 2)
    # A size is stated whole or not at all.
    has_sizes = all(
        (image.width is None and image.height is None) or ((image.width or 0) > 0 and (image.height or 0) > 0)
        for image in images
    )
    numbers, xywh = (
        np.fromiter(
            itertools.chain.from_iterable(map(get, annotations)), dtype=np.float64, count=width * len(annotations)
        ).reshape(-1, width)
        for get, width in ((NUMBERS, 6), (BOX, 4))
    )
    is_sound = len(ids) and has_sizes and all(names) and np.isfinite(numbers).all() and np.isfinite(xywh).all()
    if not is_sound or not (np.abs(numbers[:, :3]) < LARGEST).all():
        return None
    box_ids, image_ids, category_of_box = numbers[:, :3].astype(np.int64).T
    areas, is_ignored = numbers[:, 3], (numbers[:, 4] + numbers[:, 5]) > 0
    category_ids = np.sort(np.array([int(category["id"]) for category in content.categories], dtype=np.int64))
    image_of_box, is_known = _find(ids, image_ids)
    labels, has_category = _find(category_ids, category_of_box)
    has_none = (category_of_box == NO_CATEGORY) & is_ignored
    if not (is_known.all() and (has_category | has_none).all() and _are_unique(ids) and _are_unique(box_ids)):
        return None
    labels[has_none] = EVERY_CLASS
    order = _order(image_of_box)
    xyxy = xywh[order]
    with np.errstate(over="ignore"):
        xyxy[:, 2:] += xyxy[:, :2]
    return content.categories, Columns(
        names, ids, sizes, np.bincount(image_of_box, minlength=len(ids)), xyxy, labels[order], is_ignored[order],
        areas[order], box_ids[order], lambda index: f"{path}: image id {ids[index]} (index {index})",
    )  # fmt: skip


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


def _are_unique(ids: NDArray[np.int64]) -> bool:
    return bool((np.diff(ids) > 0).all() or (np.diff(np.sort(ids)) > 0).all())


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


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_side(value: Any) -> bool:
    return _is_integer(value) and 0 < value < 2**31


# What each field must be, and what an error says of one that is not.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (lambda value: _is_integer(value) or isinstance(value, str), "a whole number or a text; write a unique one"),
    "file_name": (lambda value: isinstance(value, str) and value != "", "a file name; write that of the image"),
    "width": (_is_side, "a size in pixels; write the image's"),
    "height": (_is_side, "a size in pixels; write the image's"),
    "bbox": (
        lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value)),
        "four finite numbers; write [x, y, width, height] in pixels",
    ),
    "area": (lambda value: value is None or _is_finite(value), "a finite number; correct it or leave it out"),
    "iscrowd": (lambda value: value in (None, 0, 1), "0 or 1; write one of them"),
    "ignore": (lambda value: value in (None, 0, 1), "0 or 1; write one of them"),
}


def _check(item: dict[str, Any], place: str, *fields: str) -> None:
    for field in fields:
        is_fine, expected = FIELDS[field]
        if not is_fine(item.get(field)):
            fault = f"{shown(item[field], json.dumps)} is not" if field in item else "missing; it must be"
            raise DataError(f"{place}, field '{field}': {fault} {expected}")


def read_coco(annotations: str | Path, image_folder: str | Path | None = None, skip_missing: bool = False) -> Records:
    """Read a COCO annotation file and check it against its images (headers only; of over 20,000 images, of a sample).

    An annotation with `iscrowd` or `ignore` set to 1 is an ignored region; without a category, for every class.

    Args:
        annotations: the JSON file.
        image_folder: folder of the images; by default the first of these that holds any of them: `images/` beside the
            file, the file's folder, a folder named like the file (`train.json`, `train/`), COCO's own layout
            (`annotations/instances_train2017.json`, `train2017/`).
        skip_missing: leave out images whose file is missing, and count them.

    Returns:
        Records whose labels follow the sorted category ids, boxes clipped to their images. Categories without boxes are
        kept.

    Raises:
        DataError: the file or an entry is at fault; names file, entry (id and index) and field, and says what to do.
    """
    path = Path(annotations)
    categories, columns = read_columns(path) or _read_carefully(path)
    category_ids, class_names = _categories(categories, path)
    folders = [Path(image_folder)] if image_folder is not None else _folders(path)
    return build(path, folders, columns, class_names, category_ids, skip_missing=skip_missing)


def _folders(path: Path) -> list[Path]:
    names = dict.fromkeys((path.stem, path.stem.rpartition("_")[2]))
    above = path.parent.parent
    return [
        path.parent / "images", path.parent, *(path.parent / name for name in names), *(above / name for name in names),
        above / "images", *(above / "images" / name for name in names),
    ]  # fmt: skip


def _load(path: Path) -> dict[str, list[Any]]:
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty; write a COCO object with the keys {', '.join(KEYS)}")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "is the file cut off? Write it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {printable(error)}; write the file again") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: a JSON object with the keys {', '.join(KEYS)} is expected at the top, "
            f"not a {type(content).__name__}"
        )
    for key in KEYS:
        if not isinstance(content.get(key), list):
            fault = "is missing" if key not in content else f"is a {type(content[key]).__name__}"
            raise DataError(
                f"{path}: the key '{key}' {fault}; write a list of objects there (it may be a COCO export "
                "for something else, such as results or captions)"
            )
    return content


def _read_carefully(path: Path) -> tuple[list[Any], Columns]:
    """Categories and columns of a file, each entry checked.

    Raises:
        DataError: an entry is at fault; names it.
    """
    content = _load(path)
    category_ids, _ = _categories(content["categories"], path)
    images = list(_images(content["images"], path))
    by_image = _boxes(content["annotations"], images, category_ids, path)
    return content["categories"], columns_of(image._replace(boxes=by_image[image.image_id]) for image in images)


def _categories(items: list[Any], path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    by_id: dict[int, Any] = {}
    for index, item in enumerate(items):
        place = _place(path, "category", index, item)
        category_id = item.get("id")
        if not _is_integer(category_id):
            raise DataError(f"{place}, field 'id': {shown(category_id)} is not an integer; write a unique number")
        if category_id in by_id:
            raise DataError(f"{place}, field 'id': {category_id} is there twice; give every category a unique id")
        by_id[category_id] = item.get("name")
    ids = tuple(sorted(by_id))
    return ids, check_class_names([by_id[i] for i in ids], f"{path}, categories in order of their ids, field 'name'")


def _images(items: list[Any], path: Path) -> Iterator[RawImage]:
    if not items:
        raise DataError(f"{path}: the list 'images' is empty; a dataset needs at least one image")
    seen: set[int | str] = set()
    for index, item in enumerate(items):
        with Entry(_id_of(item)) as one:
            place = _place(path, "image", index, item)
            _check(item, place, "id", "file_name")
            image_id = _unique(item["id"], seen, place)
            stated_size = None
            if item.get("width") is not None or item.get("height") is not None:
                _check(item, place, "width", "height")
                stated_size = item["height"], item["width"]
        if one.fault is None:
            yield RawImage(item["file_name"], place, (), stated_size, image_id)


def _boxes(
    items: list[Any], images: list[RawImage], category_ids: tuple[int, ...], path: Path
) -> dict[int | str | None, list[RawBox]]:
    by_image: dict[int | str | None, list[RawBox]] = {image.image_id: [] for image in images}
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    seen: set[int | str] = set()
    for index, item in enumerate(items):
        image_id = item.get("image_id") if isinstance(item, dict) else None
        is_known = not isinstance(image_id, bool) and isinstance(image_id, int | str) and image_id in by_image
        with Entry(image_id if is_known else None, _id_of(item)):
            place = _place(path, "annotation", index, item)
            _check(item, place, "id")
            annotation_id = _unique(item["id"], seen, place)
            if not is_known:
                raise DataError(
                    f"{place}, field 'image_id': {shown(image_id)} is not in 'images'; "
                    "add the image there or remove the annotation"
                )
            _check(item, place, "bbox", "area", "iscrowd", "ignore")
            x, y, width, height = map(float, item["bbox"])
            is_ignored = bool(item.get("iscrowd") or item.get("ignore"))
            label = _label(item, is_ignored, labels, place)
            box = RawBox((x, y, x + width, y + height), label, annotation_id, is_ignored, item.get("area"))
            by_image[item["image_id"]].append(box)
    return by_image


def _label(item: dict[str, Any], is_ignored: bool, labels: dict[int, int], place: str) -> int:
    category_id = item.get("category_id")
    if is_ignored and category_id is None:
        return EVERY_CLASS
    if not _is_integer(category_id) or category_id not in labels:
        raise DataError(
            f"{place}, field 'category_id': {shown(category_id)} is not in 'categories' "
            f"({_some(tuple(labels))}); add the category or correct the annotation"
        )
    return labels[category_id]


def _id_of(item: Any) -> int | str | None:
    """The id of an entry, if it has one that can be named."""
    own_id = item.get("id") if isinstance(item, dict) else None
    return own_id if isinstance(own_id, int | str) else None


def _unique(own_id: int | str, seen: set[int | str], place: str) -> int | str:
    if own_id in seen:
        raise DataError(f"{place}, field 'id': {shown(own_id)} is there twice; give each a unique id")
    seen.add(own_id)
    return own_id


def _place(path: Path, kind: str, index: int, item: Any) -> str:
    if not isinstance(item, dict):
        raise DataError(f"{path}: {kind} at index {index} is {_short(item)}; write an object there")
    return f"{path}: {kind} id {_short(item.get('id'))} (index {index})"


def _short(value: Any) -> str:
    return shown(value, json.dumps)


def _some(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
