"""Reads COCO JSON."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.builder import RawBox, RawBoxes, RawImages, RecordsBuilder, boxes_in_columns, plain_id, take
from efficientdet.data.check import (
    Entry,
    check_class_names,
    check_file_name,
    check_size,
    find_image_folder,
    measure,
    read_text,
    shown,
)
from efficientdet.data.coco_columns import CocoColumns, read_columns
from efficientdet.data.records import EVERY_CLASS, Records
from efficientdet.errors import DataError
from efficientdet.text import printable

KEYS = ("images", "annotations", "categories")
SIZES_NOT_CHECKED = "image sizes taken from the annotations"
# The headers of all images are read of datasets up to this size; of larger ones those of a sample of this size.
MEASURED, SAMPLE = 20_000, 500
# No file name that has none of these, and does not begin with a slash, leaves the folder.
LEAD_ELSEWHERE = ("..", "\n/", "\\", ":", "\0")
# With more images, the files of their folders are listed.
LOOKED_UP_ONE_BY_ONE = 1_000


class _Entry(NamedTuple):
    image_id: int | str
    file_name: str
    stated_size: tuple[int, int] | None


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
    columns = read_columns(path) or _read_carefully(path)
    category_ids, class_names = _categories(columns.categories, path)
    names = columns.images.file_names
    is_sound = _are_inside(columns.images, path)
    folder = Path(image_folder) if image_folder is not None else find_image_folder(_folders(path), names)
    builder = RecordsBuilder(path, folder, skip_missing)
    is_sound &= _have_files(builder, columns.images, is_sound, path)
    is_sound[_measure(builder, columns.images, np.flatnonzero(is_sound), path)] = False
    images, boxes = _only(columns, is_sound)
    return builder.finish_columns(images, boxes, class_names, category_ids)


def _are_inside(images: RawImages, path: Path) -> NDArray[np.bool_]:
    """Whether each file name stays in the image folder; others are an error."""
    result = np.ones(len(images.sizes), dtype=np.bool_)
    joined = "\n".join(images.file_names)
    if any(sign in joined for sign in LEAD_ELSEWHERE) or joined.startswith("/"):
        for index, name in enumerate(images.file_names):
            with Entry(plain_id(images.image_ids, index)) as one:
                check_file_name(name, _place_of_image(path, images, index))
            result[index] = one.fault is None
    return result


def _have_files(
    builder: RecordsBuilder, images: RawImages, is_inside: NDArray[np.bool_], path: Path
) -> NDArray[np.bool_]:
    """Whether each image has a file; those without are an error, or counted."""
    result, listed = np.ones(len(images.sizes), dtype=np.bool_), set[str]()
    if len(result) > LOOKED_UP_ONE_BY_ONE:
        listed = _listed(builder.image_folder, images.file_names)
        if listed.issuperset(images.file_names):
            return result
    for index, (name, boxes) in enumerate(zip(images.file_names, images.box_counts.tolist(), strict=True)):
        has_file = name in listed
        if not has_file and is_inside[index]:
            with Entry(plain_id(images.image_ids, index), file=builder.image_folder / name):
                has_file = builder.locate(name, _place_of_image(path, images, index), boxes) is not None
        result[index] = has_file
    return result


def _listed(folder: Path, names: Sequence[str]) -> set[str]:
    """What is in the folders that some names are in: much faster than looking for each."""
    found: set[str] = set()
    for parent in {name.rpartition("/")[0] for name in names}:
        with suppress(OSError):
            start = f"{parent}/" if parent else ""
            found.update(map(start.__add__, os.listdir(folder / parent)) if start else os.listdir(folder))
    return found


def _measure(builder: RecordsBuilder, images: RawImages, indices: NDArray[np.int64], path: Path) -> list[int]:
    """Compare the sizes stated with those of the files, and add those not stated; of many images of a sample.

    Returns:
        Indices of images to leave out, where faults are collected.
    """
    wrong = []
    if len(indices) > MEASURED:
        is_sampled = np.arange(len(indices)) % (len(indices) // SAMPLE) == 0
        checked = indices[is_sampled | (images.sizes[indices, 0] == 0)]
        builder.counts[SIZES_NOT_CHECKED] = len(indices) - len(checked)
        indices = checked
    for index in indices.tolist():
        place, image = _place_of_image(path, images, index), builder.image_folder / images.file_names[index]
        with Entry(plain_id(images.image_ids, index), file=image) as one:
            image_size = measure(image, place)
            height, width = images.sizes[index].tolist()
            images.sizes[index] = image_size
            check_size(image, (height, width) if height else image_size, image_size, place)
        # Boxes made for the image before its rotation can be turned.
        if one.fault is not None and one.fault.code != "exif-rotation":
            wrong.append(index)
    return wrong


def _only(columns: CocoColumns, kept: NDArray[np.bool_]) -> tuple[RawImages, RawBoxes]:
    """The images to keep, with their boxes."""
    images, boxes = columns.images, columns.boxes
    if kept.all():
        return images, boxes
    of_kept = np.repeat(kept, images.box_counts)
    return RawImages(
        list(itertools.compress(images.file_names, kept)), take(images.image_ids, kept),
        images.sizes[kept], images.box_counts[kept],
    ), RawBoxes(
        boxes.xyxy[of_kept], boxes.labels[of_kept], take(boxes.annotation_ids, of_kept),
        boxes.is_ignored[of_kept], boxes.areas[of_kept],
    )  # fmt: skip


def _place_of_image(path: Path, images: RawImages, index: int) -> str:
    return f"{path}: image id {_short(plain_id(images.image_ids, index))} (index {index})"


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


def _read_carefully(path: Path) -> CocoColumns:
    """The columns of a file, each entry checked.

    Raises:
        DataError: an entry is at fault; names it.
    """
    content = _load(path)
    category_ids, _ = _categories(content["categories"], path)
    entries = list(_entries(content["images"], path))
    by_image = _boxes(content["annotations"], entries, category_ids, path)
    images = RawImages(
        [entry.file_name for entry in entries], [entry.image_id for entry in entries],
        np.array([entry.stated_size or (0, 0) for entry in entries], dtype=np.int64),
        np.array([len(boxes) for boxes in by_image.values()], dtype=np.int64),
    )  # fmt: skip
    return CocoColumns(content["categories"], images, boxes_in_columns(itertools.chain(*by_image.values())))


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
        with Entry(_id_of(item)) as one:
            place = _place(path, "image", index, item)
            image_id = _own_id(item, seen, place)
            file_name = item.get("file_name")
            if not isinstance(file_name, str) or not file_name:
                raise DataError(
                    f"{place}, field 'file_name': {shown(file_name)} is not a file name; write that of the image"
                )
            stated_size = _stated_size(item, place)
        if one.fault is None:
            yield _Entry(image_id, file_name, stated_size)


def _stated_size(item: dict[str, Any], place: str) -> tuple[int, int] | None:
    if item.get("width") is None and item.get("height") is None:
        return None
    for name in ("width", "height"):
        if not _is_integer(item.get(name)) or not 0 < item[name] < 2**31:
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
        image_id = item.get("image_id") if isinstance(item, dict) else None
        is_known = not isinstance(image_id, bool) and isinstance(image_id, int | str) and image_id in by_image
        with Entry(image_id if is_known else None, _id_of(item)):
            place = _place(path, "annotation", index, item)
            annotation_id = _own_id(item, seen, place)
            if not is_known:
                raise DataError(
                    f"{place}, field 'image_id': {shown(image_id)} is not in 'images'; "
                    "add the image there or remove the annotation"
                )
            is_ignored = _is_ignored(item, place)
            label = _label(item, is_ignored, labels, place)
            box = RawBox(_xyxy(item, place), label, annotation_id, is_ignored, _area(item, place))
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
