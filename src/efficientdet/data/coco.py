"""Reads COCO JSON.

A file without fault goes straight into columns, several times as fast as through dictionaries: msgspec checks types as
it parses, and skips what is not asked for, such as segmentations. Of any other file each entry is checked, and what is
wrong is named. Of a sound file both read the same.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.builder import RawBox, RawImage, build, columns_of
from efficientdet.data.fields import Entry, check_class_names, read_text, shown
from efficientdet.data.records import EVERY_CLASS, Columns, Records
from efficientdet.errors import DataError
from efficientdet.text import printable

# Of an ignored region of no class, which has no category.
NO_CATEGORY = -(2.0**52)
# Fields with their types and, if they may be left out, their defaults. Texts as ids are left to the other reader.
IMAGE: list[Any] = [("id", int), ("file_name", str), ("width", int | None, None), ("height", int | None, None)]
# As floats, numbers take the same number of bytes in MessagePack, and so does every annotation.
ANNOTATION: list[Any] = [
    ("id", float),
    ("image_id", float),
    ("bbox", tuple[float, float, float, float]),
    ("category_id", float, NO_CATEGORY),
    ("area", float, 0.0),
    ("iscrowd", float, 0.0),
    ("ignore", float, 0.0),
]
# Bytes of annotations that are parsed at a time: what comes of them stays in the processor's cache.
CHUNK = 2**17
BETWEEN = re.compile(rb"\}\s*,\s*\{")
# Ids up to here are looked up in a table.
LARGEST_TABLE = 2**23
# Whole numbers up to here are exact as float64.
LARGEST = 2.0**53
KEYS = ("images", "annotations", "categories")


def read_columns(path: Path) -> tuple[list[Any], Columns] | None:
    """Categories and columns of a COCO file; None if it has a fault, or if msgspec is not installed."""
    try:
        import msgspec

        data: Any = np.memmap(path, mode="r")
    except (ImportError, OSError, ValueError):  # also of an empty file
        return None
    # Made here, since a class statement would need msgspec to be installed.
    image = msgspec.defstruct("Image", IMAGE, gc=False)
    lists = [("images", list[image]), ("annotations", msgspec.Raw), ("categories", list[Any])]  # type: ignore[valid-type]
    with _without_garbage_collection():
        try:
            content: Any = msgspec.json.decode(data, type=msgspec.defstruct("File", lists))
            return _columns(content.images, _boxes_in(memoryview(content.annotations)), content.categories, path)
        # msgspec's own errors are ValueErrors; some of its numbers are too large for numpy.
        except (ValueError, RecursionError, OverflowError, LookupError, TypeError):
            return None


class _Boxes(NamedTuple):
    """Annotations in columns, as the file has them; `xywh` is (M, 4)."""

    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    is_ignored: NDArray[np.bool_]


def _boxes_in(text: memoryview) -> _Boxes:
    """The annotations of a JSON list.

    It is parsed in pieces, cut between two objects. Were they not two annotations, the pieces would not be JSON.

    Raises:
        ValueError: an annotation has a fault.
    """
    import msgspec

    annotation = msgspec.defstruct("Annotation", ANNOTATION, gc=False)
    parse, pack = msgspec.json.Decoder(list[annotation]).decode, msgspec.msgpack.Encoder().encode  # type: ignore[valid-type]
    layout, parts, start = _layout(), [], 0
    while start < len(text):
        cut = BETWEEN.search(text, start + CHUNK)
        piece = bytes(text[start : cut.start() + 1 if cut else None])
        annotations = parse(b"%b%b%b" % (b"[" if start else b"", piece, b"]" if cut else b""))
        packed = pack(annotations)
        parts.append(_checked(np.frombuffer(packed, layout, offset=len(packed) - layout.itemsize * len(annotations))))
        start = cut.end() - 1 if cut else len(text)
    return _Boxes(*map(np.concatenate, zip(*parts, strict=True)))


def _layout() -> np.dtype[Any]:
    """Where MessagePack has the numbers of an annotation: each behind its field's name, and a byte for its type."""
    offsets, size = [], 1
    for name, *_ in ANNOTATION:
        size += 1 + len(name) + (name == "bbox")
        numbers = 4 if name == "bbox" else 1
        offsets += [size + 1 + 9 * number for number in range(numbers)]
        size += 9 * numbers
    names = ("id", "image_id", "x", "y", "width", "height", "category_id", "area", "iscrowd", "ignore")
    return np.dtype({"names": names, "formats": [">f8"] * 10, "offsets": offsets, "itemsize": size})


def _checked(found: NDArray[Any]) -> _Boxes:
    ids = np.array([found["id"], found["image_id"], found["category_id"]], dtype=np.float64)
    xywh = np.stack([found[name] for name in ("x", "y", "width", "height")], axis=1, dtype=np.float64)
    areas, is_crowd, is_ignored = found["area"].astype(np.float64), found["iscrowd"] == 1, found["ignore"] == 1
    are_whole = (np.abs(ids) < LARGEST).all() and (ids == np.floor(ids)).all()
    are_flags = (is_crowd | (found["iscrowd"] == 0)).all() and (is_ignored | (found["ignore"] == 0)).all()
    if not (are_whole and are_flags and np.isfinite(xywh).all() and np.isfinite(areas).all()):
        raise ValueError("an annotation has a fault")
    box_ids, image_ids, category_ids = ids.astype(np.int64)
    return _Boxes(box_ids, image_ids, category_ids, xywh, areas, is_crowd | is_ignored)


def _columns(images: list[Any], boxes: _Boxes, categories: list[Any], path: Path) -> tuple[list[Any], Columns] | None:
    names = [image.file_name for image in images]
    ids = np.array([image.id for image in images], dtype=np.int64)
    # A size is stated whole or not at all; -1 stands for none.
    sides = [(image.height, image.width) for image in images]
    sizes = np.array([-1 if side is None else side for both in sides for side in both], dtype=np.int64).reshape(-1, 2)
    category_ids = np.sort(np.array([int(category["id"]) for category in categories], dtype=np.int64))
    image_of_box, is_known = _find(ids, boxes.image_ids)
    labels, has_category = _find(category_ids, boxes.category_ids)
    has_none = (boxes.category_ids == NO_CATEGORY) & boxes.is_ignored
    is_sound = len(ids) and all(names) and ((sizes > 0).all(axis=1) | (sizes == -1).all(axis=1)).all()
    is_sound = is_sound and is_known.all() and (has_category | has_none).all()
    if not (is_sound and _are_unique(ids) and _are_unique(boxes.ids)):
        return None
    labels[has_none] = EVERY_CLASS
    order = _order(image_of_box)
    # np.take is several times as fast as an index in brackets.
    xyxy = np.take(boxes.xywh, order, axis=0)
    with np.errstate(over="ignore"):
        xyxy[:, 2:] += xyxy[:, :2]
    return categories, Columns(
        names, ids, np.maximum(sizes, 0), np.bincount(image_of_box, minlength=len(ids)), xyxy, np.take(labels, order),
        np.take(boxes.is_ignored, order), np.take(boxes.areas, order), np.take(boxes.ids, order),
        lambda index: f"{path}: image id {ids[index]} (index {index})",
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
