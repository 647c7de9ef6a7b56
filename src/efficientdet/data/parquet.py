"""Reads parquet files and datasets that the Hugging Face library `datasets` saved, through pyarrow.

The usual form on the hub: a column `image`, encoded in the file or by path, and a column `objects` with the lists
`bbox` and `category`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from efficientdet.atomic_write import replacing_folder
from efficientdet.cache import cache_folder
from efficientdet.data.builder import RawBox, RawImage, build
from efficientdet.data.fields import PLAIN_NAME, Entry, check_class_names, is_file, listed_class_names, shown
from efficientdet.data.records import BOXES_CLIPPED, BOXES_DEGENERATE, BOXES_OUTSIDE, EVERY_CLASS, Records
from efficientdet.errors import DataError, SettingError, require
from efficientdet.text import printable

BoxFormat = Literal["xywh", "xyxy", "cxcywh"]
IMAGE_COLUMNS = ("image", "img", "file_name", "image_path")
BOX_FIELDS = ("bbox", "bboxes", "boxes")
CLASS_FIELDS = ("category", "categories", "category_id", "label", "labels", "class")
IGNORED_FIELDS = ("ignored", "ignore", "is_crowd", "iscrowd", "difficult")
# Where the parquet files of a split are, below the dataset's folder.
PATTERNS = ("data/{s}-*.parquet", "data/{s}.parquet", "{s}-*.parquet", "{s}.parquet", "{s}/*.parquet")
SAVED_INFO, SAVED_STATE = "dataset_info.json", "state.json"
ROWS_AT_A_TIME = 64
# The first bytes of image files, and their suffix.
SUFFIXES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"GIF8", ".gif"), (b"BM", ".bmp"))


class _Row(NamedTuple):
    image: Any
    image_id: Any
    boxes: list[Any]
    classes: list[Any]
    ignored: list[Any]
    place: str


def read_parquet(
    source: str | Path | Sequence[str | Path],
    box_format: BoxFormat = "xywh",
    class_names: Sequence[str] | None = None,
    skip_missing: bool = False,
) -> Records:
    """Read parquet files, or one split that `datasets` saved, and measure the images (headers only).

    Columns: `image`, encoded (`{bytes, path}`) or a path relative to the file's folder; `objects` with lists `bbox`,
    four numbers each, and `category`, numbers or names; optional: `image_id`, and in `objects` a list `ignored` or
    `iscrowd`. Images that are in the files are unpacked once, into the cache folder.

    Args:
        source: one file, a list of them, or the folder of a saved split.
        box_format: what the four numbers are: `xywh` and `xyxy` in pixels (COCO's and Pascal VOC's corners, from 0), or
            `cxcywh`, center and sides in fractions of the image (YOLO).
        class_names: names by category number; by default those that the files declare (`ClassLabel`), else those of
            `classes.txt` beside them, else the names found, sorted.
        skip_missing: leave out images whose file is missing, and count them.

    Returns:
        Records in order of the rows; category ids equal the labels.

    Raises:
        DataError: a row is at fault; names file, row (from 0) and field.
        MissingExtraError: pyarrow is not installed.
    """
    files = data_files(source)
    rows = [row for file in files for row in _rows(file)]
    names = check_class_names(class_names or class_names_of(files, files[0].parent), f"{files[0].parent}: class names")
    unpacked = _unpack(files) if _has_bytes(files[0]) else None
    folder = unpacked.folder if unpacked else files[0].parent
    labels: dict[Any, int] = {name: label for label, name in enumerate(names)}
    labels |= {label: label for label in range(len(names))}
    images = []
    for number, (row, image_id) in enumerate(zip(rows, _image_ids(rows), strict=True)):
        file_name = unpacked.names[number] if unpacked and unpacked.names[number] else row.image
        with Entry(image_id, file=folder / str(file_name)):
            if not isinstance(file_name, str) or not file_name:
                fault = f"{shown(row.image)} is neither an image nor a path; add the image"
                raise DataError(f"{row.place}, field 'image': {fault}")
            images.append(RawImage(file_name, image_id, row.place, _boxes(row, image_id, box_format, labels)))
    records = build(
        files[0] if len(files) == 1 else files[0].parent, folder, images, names, skip_missing=skip_missing,
        in_fractions=box_format == "cxcywh", field="image",
    )  # fmt: skip
    _doubt(records, box_format, sum(len(row.boxes) for row in rows))
    return records


def data_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of a split: as given, or the Arrow files of a folder that `datasets` saved.

    Raises:
        DataError: there are none.
    """
    if not isinstance(source, str | Path):
        files = [Path(one) for one in source]
    elif is_file(Path(source) / SAVED_STATE):
        files = sorted(Path(source).glob("*.arrow"))
    else:
        files = [Path(source)]
    if not files:
        raise DataError(f"{source}: no data files there; give parquet files or a folder that save_to_disk wrote")
    return files


def split_files(root: Path, split: str) -> list[Path]:
    """The parquet or Arrow files of a split of a folder; none if it has no such split."""
    for pattern in PATTERNS:
        found = sorted(root.glob(pattern.format(s=glob.escape(split))))
        if found:
            return found
    folder = root / split
    return sorted(folder.glob("*.arrow")) if is_file(folder / SAVED_STATE) else []


def _open(file: Path) -> Any:
    """The schema and the batches of a file: `schema_arrow`, `iter_batches`."""
    pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    try:
        is_parquet = file.suffix == ".parquet"
        opened = parquet.ParquetFile(file) if is_parquet else _ArrowFile(pyarrow.ipc.open_stream(file))
        _ = opened.schema_arrow.names  # those of a damaged file may be no text
        return opened
    except (OSError, pyarrow.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{file}: not readable as {file.suffix[1:]} ({printable(error)}); write it again") from error


class _ArrowFile(NamedTuple):
    """An Arrow stream, as `datasets` saves it, with the methods of a parquet file."""

    stream: Any

    @property
    def schema_arrow(self) -> Any:
        return self.stream.schema

    def iter_batches(self, batch_size: int, columns: Sequence[str]) -> Iterator[Any]:
        for batch in self.stream:
            batch.validate(full=True)  # a damaged one would be read beyond its memory
            for start in range(0, batch.num_rows, batch_size):
                yield batch.select([name for name in batch.schema.names if name in columns]).slice(start, batch_size)


def _batches(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """The rows of some columns, as dictionaries."""
    try:
        for batch in _open(file).iter_batches(batch_size=ROWS_AT_A_TIME, columns=columns):
            yield from batch.to_pylist()
    except (OSError, require("pyarrow", "data").ArrowException, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{file}: damaged ({printable(error)}); write it again") from error


def _column(file: Path, names: Sequence[str], what: str) -> str:
    present = _open(file).schema_arrow.names
    for name in names:
        if name in present:
            return name
    raise DataError(
        f"{file}: no column {what}: sought {', '.join(names)}; the columns are {printable(', '.join(present))}"
    )


def _has_bytes(file: Path) -> bool:
    column = _column(file, IMAGE_COLUMNS, "of images")
    return "binary" in str(_open(file).schema_arrow.field(column).type)


def class_names_of(files: Sequence[Path], folder: Path) -> list[str]:
    """The class names that files declare, else those of `classes.txt` in a folder, else those found, sorted.

    Raises:
        DataError: there are numbers alone.
    """
    declared = next((names for file in files if (names := _declared_class_names(file))), None)
    return declared or listed_class_names(folder) or _found_class_names([row for file in files for row in _rows(file)])


def _declared_class_names(file: Path) -> list[str] | None:
    """The names of the category numbers that a file declares, as `datasets` does; None if it does not."""
    metadata = (_open(file).schema_arrow.metadata or {}).get(b"huggingface")
    text = metadata if metadata is not None else _saved_info(file.parent)
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return None
    features = content.get("info", content).get("features") if isinstance(content, dict) else None
    names = _label_names(features.get("objects")) if isinstance(features, dict) else None
    return [str(name) for name in names] if names else None


def _saved_info(folder: Path) -> bytes | None:
    return (folder / SAVED_INFO).read_bytes() if is_file(folder / SAVED_INFO) else None


def _label_names(feature: Any) -> list[Any] | None:
    """The names of the first `ClassLabel` within a feature."""
    if isinstance(feature, list):
        return next((found for one in feature if (found := _label_names(one))), None)
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return list(feature["names"])
    return next((found for one in feature.values() if (found := _label_names(one))), None)


def _rows(file: Path) -> Iterator[_Row]:
    schema, image = _open(file).schema_arrow, _column(file, IMAGE_COLUMNS, "of images")
    _column(file, ("objects",), "of boxes")
    is_struct = str(schema.field(image).type).startswith("struct")
    # Of an image in the file, the path alone: the bytes are unpacked apart, once.
    path = f"{image}.path" if is_struct and file.suffix == ".parquet" else image
    wanted = [path] * (not _is_binary(schema, image)) + ["objects"] + ["image_id"] * ("image_id" in schema.names)
    for number, row in enumerate(_batches(file, wanted)):
        place = f"{file}: row {number}"
        found = row.get(image)
        objects = _lists(row["objects"], place)
        boxes = _list(objects, BOX_FIELDS, place)
        classes = _list(objects, CLASS_FIELDS, place, len(boxes))
        odd = next((one for one in classes if not isinstance(one, int | str | None)), None)
        if odd is not None:
            fault = f"{shown(odd)} is neither a number nor a name; correct it"
            raise DataError(f"{place}, field 'objects.category': {fault}")
        yield _Row(
            found.get("path") if isinstance(found, dict) else found, row.get("image_id"), boxes,
            classes,
            _list(objects, IGNORED_FIELDS, place, len(boxes), is_optional=True), place,
        )  # fmt: skip


def _is_binary(schema: Any, column: str) -> bool:
    return str(schema.field(column).type) in ("binary", "large_binary")


def _lists(objects: Any, place: str) -> dict[str, list[Any]]:
    """A dictionary of lists, from that or from a list of dictionaries."""
    if objects is None:
        return {}
    if isinstance(objects, list):
        if not all(isinstance(one, dict) for one in objects):
            fault = f"{shown(objects)} is no list of objects; write bbox and category"
            raise DataError(f"{place}, field 'objects': {fault}")
        return {name: [one.get(name) for one in objects] for name in (objects[0] if objects else ())}
    if not isinstance(objects, dict):
        raise DataError(f"{place}, field 'objects': {shown(objects)} is no object; write the lists bbox and category")
    return objects


def _list(
    objects: dict[str, Any], names: Sequence[str], place: str, length: int | None = None, is_optional: bool = False
) -> list[Any]:
    name = next((name for name in names if name in objects), None)
    if name is None:
        if objects and not is_optional:
            raise DataError(f"{place}, field 'objects': no list {names[0]}; there are {printable(', '.join(objects))}")
        return [None] * (length or 0)
    values = objects[name] or []
    if not isinstance(values, list) or (length is not None and len(values) != length):
        raise DataError(f"{place}, field 'objects.{name}': {shown(values)} is not one for each of {length} boxes")
    return values


def _found_class_names(rows: list[_Row]) -> list[str]:
    found = {one for row in rows for one in row.classes if one is not None}
    numbers = sorted(one for one in found if not isinstance(one, str))
    if numbers:
        raise DataError(
            f"{rows[0].place.partition(': row')[0]}, field 'objects.category': numbers ({shown(numbers)}) without "
            "names; write the names, one a line from 0, into a file classes.txt beside the data"
        )
    return sorted(found)


def _image_ids(rows: list[_Row]) -> list[int | str]:
    """The dataset's ids where it has them, each once; else numbers from 1."""
    ids = [row.image_id for row in rows]
    are_ids = all(isinstance(one, int | str) and not isinstance(one, bool) for one in ids)
    return ids if are_ids and len(set(ids)) == len(ids) else list(range(1, len(rows) + 1))


def _boxes(row: _Row, image_id: int | str, box_format: BoxFormat, labels: dict[Any, int]) -> list[RawBox]:
    boxes = []
    for k, (box, one, flag) in enumerate(zip(row.boxes, row.classes, row.ignored, strict=True)):
        if flag not in (None, 0, 1):
            raise DataError(f"{row.place}, field 'objects.ignored' of box {k}: {shown(flag)} is neither 0 nor 1")
        is_ignored = bool(flag)
        if is_ignored and one in (None, EVERY_CLASS):
            label = EVERY_CLASS
        elif one in labels and not isinstance(one, bool):
            label = labels[one]
        else:
            raise DataError(
                f"{row.place}, field 'objects.category' of box {k}: {shown(one)} is not among the {len(labels) // 2} "
                "classes; correct it, or add the class"
            )
        xyxy = _xyxy(box, box_format, f"{row.place}, field 'objects.bbox' of box {k}")
        boxes.append(RawBox(xyxy, label, f"{image_id}/{k + 1}", is_ignored))
    return boxes


def _xyxy(box: Any, box_format: BoxFormat, place: str) -> tuple[float, float, float, float]:
    is_box = isinstance(box, list) and len(box) == 4
    if not is_box or not all(isinstance(number, float | int) and math.isfinite(number) for number in box):
        raise DataError(f"{place}: {shown(box)} is not four finite numbers; write {box_format}")
    a, b, c, d = map(float, box)
    if box_format == "xyxy":
        return a, b, c, d
    if box_format == "xywh":
        return a, b, a + c, b + d
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2


def _doubt(records: Records, box_format: BoxFormat, boxes: int) -> None:
    """Refuse boxes that make sense in another format alone."""
    changed = sum(records.counts[name] for name in (BOXES_CLIPPED, BOXES_OUTSIDE, BOXES_DEGENERATE))
    if changed * 5 > max(boxes, 5):
        others = [other for other in get_args(BoxFormat) if other != box_format]
        raise DataError(
            f"{records.source}, field 'objects.bbox': {changed} of {boxes} boxes, read as {box_format}, stick out of "
            f"their images or have no area. If they are {' or '.join(others)}, say so once: efficientdet data convert "
            f"{records.source} OUT --to coco --box-format {others[0]}"
        )


class _Unpacked(NamedTuple):
    """The folder of unpacked images, and the name of each row's file; "" for rows without bytes."""

    folder: Path
    names: list[str]


def _unpack(files: list[Path]) -> _Unpacked:
    """Write the images that files hold into the cache folder, once."""
    # Without their folder, so that files that are moved, as a dataset that was just written is, are known again.
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    folder = cache_folder("datasets") / digest
    index = folder / "names.json"
    if not is_file(index):
        with suppress(SettingError), replacing_folder(folder) as temporary:  # another process may be faster
            names = _unpack_into(temporary / "images", files)
            (temporary / index.name).write_text(json.dumps(names), encoding="utf-8")
    return _Unpacked(folder / "images", json.loads(index.read_text(encoding="utf-8")))


def _unpack_into(folder: Path, files: list[Path]) -> list[str]:
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        column = _column(file, IMAGE_COLUMNS, "of images")
        for row in _batches(file, [column]):
            value = row[column]
            data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            name = _file_name(path, data, len(names), taken) if data else ""
            if data:
                taken.add(name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            names.append(name)
    folder.mkdir(exist_ok=True)
    return names


def suffix_of(data: bytes) -> str:
    """The suffix that suits the first bytes of an image."""
    return next((suffix for start, suffix in SUFFIXES if data.startswith(start)), ".png")


def _file_name(path: Any, data: bytes, number: int, taken: set[str]) -> str:
    """The name that the dataset has for an image, if it is one and the first such; else one by its number."""
    name = path if isinstance(path, str) and PLAIN_NAME.fullmatch(path) and len(path) < 200 else ""
    if not name or name in taken:
        name = f"{number:07d}{suffix_of(data)}"
    return name
