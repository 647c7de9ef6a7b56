"""Reads COCO JSON.

A file without fault goes straight into columns (`coco_columns`). Of any other file each entry is checked, and what is
wrong is named. Of a sound file both read the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efficientdet.data.builder import RawBox, RawImage, build, columns_of
from efficientdet.data.coco_columns import read_columns
from efficientdet.data.fields import Entry, check_class_names, read_text, shown
from efficientdet.data.records import EVERY_CLASS, Columns, Records
from efficientdet.errors import DataError
from efficientdet.text import printable

KEYS = ("images", "annotations", "categories")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_id(value: Any) -> Any:
    """A whole number that is written as 7.0, as tables with gaps are, is 7; anything else stays as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    "id": (
        lambda value: _is_integer(_as_id(value)) or isinstance(value, str),
        "a whole number or a text; write a unique one",
    ),
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
        category_id = _as_id(item.get("id"))
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
            image_id = _unique(_as_id(item["id"]), seen, place)
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
        image_id = _as_id(item.get("image_id")) if isinstance(item, dict) else None
        is_known = not isinstance(image_id, bool) and isinstance(image_id, int | str) and image_id in by_image
        with Entry(image_id if is_known else None, _id_of(item)):
            place = _place(path, "annotation", index, item)
            _check(item, place, "id")
            annotation_id = _unique(_as_id(item["id"]), seen, place)
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
            by_image[image_id].append(box)
    return by_image


def _label(item: dict[str, Any], is_ignored: bool, labels: dict[int, int], place: str) -> int:
    category_id = _as_id(item.get("category_id"))
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
    own_id = _as_id(item.get("id")) if isinstance(item, dict) else None
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
