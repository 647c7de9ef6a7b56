"""Reads COCO JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from efficientdet.data.check import (
    check_class_names,
    check_file_name,
    check_size,
    find_image_folder,
    measure,
    read_text,
    shown,
)
from efficientdet.data.records import EVERY_CLASS, RawBox, Records, RecordsBuilder
from efficientdet.errors import DataError
from efficientdet.text import printable

KEYS = ("images", "annotations", "categories")


class _Entry(NamedTuple):
    image_id: int | str
    file_name: str
    stated_size: tuple[int, int] | None
    place: str


def read_coco(annotations: str | Path, image_folder: str | Path | None = None, skip_missing: bool = False) -> Records:
    """Read a COCO annotation file and check it against its images (headers only).

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
    content = _load(path)
    category_ids, class_names = _categories(content["categories"], path)
    entries = list(_entries(content["images"], path))
    boxes = _boxes(content["annotations"], entries, category_ids, path)
    names = [entry.file_name for entry in entries]
    folder = Path(image_folder) if image_folder is not None else find_image_folder(_folders(path), names)
    builder = RecordsBuilder(path, folder, skip_missing)
    for entry in entries:
        of_image = boxes[entry.image_id]
        image = builder.locate(entry.file_name, entry.place, len(of_image))
        if image is None:
            continue
        image_size = measure(image, entry.place)
        check_size(image, entry.stated_size or image_size, image_size, entry.place)
        builder.add(entry.image_id, image, image_size, of_image)
    return builder.finish(class_names, category_ids)


def _folders(path: Path) -> list[Path]:
    split = path.stem.rpartition("_")[2]
    names = dict.fromkeys((path.stem, split))
    beside = [path.parent / "images", path.parent, *(path.parent / name for name in names)]
    above = path.parent.parent
    return [
        *beside,
        *(above / name for name in names),
        above / "images",
        *(above / "images" / n for n in names),
    ]


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


def _entries(items: list[Any], path: Path) -> Iterator[_Entry]:
    if not items:
        raise DataError(f"{path}: the list 'images' is empty; a dataset needs at least one image")
    seen: set[Any] = set()
    for index, item in enumerate(items):
        place = _place(path, "image", index, item)
        image_id = _own_id(item, seen, place)
        file_name = item.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise DataError(
                f"{place}, field 'file_name': {shown(file_name)} is not a file name; write that of the image"
            )
        check_file_name(file_name, place)
        yield _Entry(image_id, file_name, _stated_size(item, place), place)


def _stated_size(item: dict[str, Any], place: str) -> tuple[int, int] | None:
    if item.get("width") is None and item.get("height") is None:
        return None
    for name in ("width", "height"):
        if not _is_integer(item.get(name)) or item[name] <= 0:
            raise DataError(
                f"{place}, field '{name}': {shown(item.get(name))} is not a size in pixels; write the image's"
            )
    return item["height"], item["width"]


def _boxes(
    items: list[Any], entries: list[_Entry], category_ids: tuple[int, ...], path: Path
) -> dict[int | str, list[RawBox]]:
    by_image: dict[int | str, list[RawBox]] = {entry.image_id: [] for entry in entries}
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    seen: set[Any] = set()
    for index, item in enumerate(items):
        place = _place(path, "annotation", index, item)
        annotation_id = _own_id(item, seen, place)
        image_id = item.get("image_id")
        if isinstance(image_id, bool) or not isinstance(image_id, int | str) or image_id not in by_image:
            raise DataError(
                f"{place}, field 'image_id': {shown(image_id)} is not in 'images'; "
                "add the image there or remove the annotation"
            )
        is_ignored = _is_ignored(item, place)
        category_id = item.get("category_id")
        if is_ignored and category_id is None:
            by_image[image_id].append(RawBox(_xyxy(item, place), EVERY_CLASS, annotation_id, True, _area(item, place)))
            continue
        if not _is_integer(category_id) or category_id not in labels:
            raise DataError(
                f"{place}, field 'category_id': {shown(category_id)} is not in 'categories' "
                f"({_some(category_ids)}); add the category or correct the annotation"
            )
        by_image[image_id].append(
            RawBox(
                _xyxy(item, place),
                labels[category_id],
                annotation_id,
                is_ignored,
                _area(item, place),
            )
        )
    return by_image


def _xyxy(item: dict[str, Any], place: str) -> tuple[float, float, float, float]:
    bbox = item.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        fault = "missing" if bbox is None else f"{_short(bbox)} is not four finite numbers"
        raise DataError(f"{place}, field 'bbox': {fault}; write [x, y, width, height] in pixels")
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def _is_ignored(item: dict[str, Any], place: str) -> bool:
    for field in ("iscrowd", "ignore"):
        if item.get(field, 0) not in (0, 1):
            raise DataError(f"{place}, field '{field}': {_short(item[field])} is neither 0 nor 1; write one of them")
    return bool(item.get("iscrowd", 0) or item.get("ignore", 0))


def _area(item: dict[str, Any], place: str) -> float | None:
    area = item.get("area")
    if area is not None and not _is_finite(area):
        raise DataError(f"{place}, field 'area': {_short(area)} is not a finite number; correct it or leave it out")
    return area


def _own_id(item: dict[str, Any], seen: set[Any], place: str) -> int | str:
    own_id = item.get("id")
    if isinstance(own_id, bool) or not isinstance(own_id, int | str):
        raise DataError(
            f"{place}, field 'id': {_short(own_id)} is neither a whole number nor a text; write a unique one"
        )
    if own_id in seen:
        raise DataError(f"{place}, field 'id': {shown(own_id)} is there twice; give each a unique id")
    seen.add(own_id)
    return own_id


def _place(path: Path, kind: str, index: int, item: Any) -> str:
    if not isinstance(item, dict):
        raise DataError(f"{path}: {kind} at index {index} is {_short(item)}; write an object there")
    return f"{path}: {kind} id {_short(item.get('id'))} (index {index})"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _short(value: Any) -> str:
    return shown(value, json.dumps)


def _some(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
