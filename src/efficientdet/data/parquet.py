"""Reads parquet files and datasets that the Hugging Face library `datasets` saved, through pyarrow.

The usual form on the hub: a column `image`, encoded in the file or by path, and a column `objects` with the lists
`bbox` and `category`.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
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
OBJECTS = "objects"
SAVED_INFO, SAVED_STATE = "dataset_info.json", "state.json"
ROWS_AT_A_TIME = 64
# The first bytes of image files, and their suffix.
SUFFIXES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"GIF8", ".gif"), (b"BM", ".bmp"))


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
    tables = [_Table(file) for file in data_files(source)]
    place = tables[0].file.parent
    names = check_class_names(class_names or _class_names(tables, place), f"{place}: class names")
    folder, unpacked = _unpack(tables) if tables[0].has_bytes else (place, [])
    rows, images = [row for table in tables for row in table.rows()], []
    for image_id, row, own in itertools.zip_longest(_image_ids(rows), rows, unpacked):
        file_name = own or row.image
        with Entry(image_id, file=folder / str(file_name)):
            if not isinstance(file_name, str) or not file_name:
                fault = f"{shown(row.image)} is neither an image nor a path; add the image"
                raise DataError(f"{row.place}, field 'image': {fault}")
            images.append(RawImage(file_name, row.place, _boxes(row, box_format, len(names)), image_id=image_id))
    records = build(
        tables[0].file if len(tables) == 1 else place, [folder], images, names, skip_missing=skip_missing,
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


class _Row(NamedTuple):
    image: Any
    image_id: Any
    boxes: list[Any]
    classes: list[Any]
    ignored: list[Any]
    place: str


class _Table:
    """A parquet file, or an Arrow stream as `datasets` saves it.

    Raises:
        DataError: it is damaged, or a column is missing.
    """

    def __init__(self, file: Path) -> None:
        pyarrow = require("pyarrow", "data")
        self.file = file
        self.faults = (OSError, pyarrow.ArrowException, ValueError, TypeError, LookupError)
        try:
            self.schema = self._open().schema_arrow if self.is_parquet else self._open().schema
            present = printable(", ".join(self.schema.names))  # those of a damaged file may be no text
        except self.faults as error:
            fault = f"not readable as {file.suffix[1:]} ({printable(error)}); write it again"
            raise DataError(f"{file}: {fault}") from error
        found = [name for name in IMAGE_COLUMNS if name in self.schema.names]
        for what, sought, is_there in (
            ("images", IMAGE_COLUMNS, found), ("boxes", (OBJECTS,), OBJECTS in self.schema.names),
        ):  # fmt: skip
            if not is_there:
                fault = f"no column of {what}: sought {', '.join(sought)}; the columns are {present}"
                raise DataError(f"{file}: {fault}")
        self.image = found[0]
        self.image_type = str(self.schema.field(self.image).type)
        self.has_bytes = "binary" in self.image_type

    @property
    def is_parquet(self) -> bool:
        return self.file.suffix == ".parquet"

    def _open(self) -> Any:
        if self.is_parquet:
            return require("pyarrow.parquet", "data").ParquetFile(self.file)
        return require("pyarrow", "data").ipc.open_stream(self.file)

    def values(self, *columns: str) -> Iterator[dict[str, Any]]:
        """The rows of some columns."""
        try:
            if self.is_parquet:
                for batch in self._open().iter_batches(ROWS_AT_A_TIME, columns=columns):
                    yield from batch.to_pylist()
                return
            for batch in self._open():
                batch.validate(full=True)  # a damaged one would be read beyond its memory
                chosen = batch.select([name for name in columns if name in batch.schema.names])
                for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                    yield from chosen.slice(start, ROWS_AT_A_TIME).to_pylist()
        except self.faults as error:
            raise DataError(f"{self.file}: damaged ({printable(error)}); write it again") from error

    def rows(self) -> Iterator[_Row]:
        """The annotations; of an image in the file, the path alone, for the bytes are unpacked apart, once."""
        path = f"{self.image}.path" if self.is_parquet and self.image_type.startswith("struct") else self.image
        columns = [path] * (self.image_type not in ("binary", "large_binary")) + [OBJECTS]
        for number, row in enumerate(self.values(*columns, *(["image_id"] * ("image_id" in self.schema.names)))):
            place, found = f"{self.file}: row {number}", row.get(self.image)
            objects = _lists(row[OBJECTS], place)
            boxes = _list(objects, BOX_FIELDS, place)
            classes = _list(objects, CLASS_FIELDS, place, len(boxes))
            odd = next((one for one in classes if not isinstance(one, int | str | None)), None)
            if odd is not None:
                fault = f"{shown(odd)} is neither a number nor a name; correct it"
                raise DataError(f"{place}, field 'objects.category': {fault}")
            ignored = _list(objects, IGNORED_FIELDS, place, len(boxes), is_optional=True)
            image = found.get("path") if isinstance(found, dict) else found
            yield _Row(image, row.get("image_id"), boxes, classes, ignored, place)

    def declared_class_names(self) -> list[str] | None:
        """The names of the category numbers that the file declares, as `datasets` does; None if it does not."""
        text, info = (self.schema.metadata or {}).get(b"huggingface"), self.file.parent / SAVED_INFO
        if text is None and is_file(info):
            text = info.read_bytes()
        try:
            content = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            return None
        features = content.get("info", content).get("features") if isinstance(content, dict) else None
        names = _label_names(features.get(OBJECTS)) if isinstance(features, dict) else None
        return [str(name) for name in names] if names else None


def class_names_of(files: Sequence[Path], folder: Path) -> list[str]:
    """The class names that files declare, else those of `classes.txt` in a folder, else those found, sorted.

    Raises:
        DataError: there are numbers alone.
    """
    return _class_names([_Table(file) for file in files], folder)


def _class_names(tables: Sequence[_Table], folder: Path) -> list[str]:
    declared = next((names for table in tables if (names := table.declared_class_names())), None)
    names = declared or listed_class_names(folder)
    if names:
        return names
    found = {one for table in tables for row in table.rows() for one in row.classes if one is not None}
    numbers = sorted(one for one in found if not isinstance(one, str))
    if numbers:
        raise DataError(
            f"{tables[0].file}, field 'objects.category': numbers ({shown(numbers)}) without names; write the names, "
            "one a line from 0, into a file classes.txt beside the data"
        )
    return sorted(found)


def _label_names(feature: Any) -> list[Any] | None:
    """The names of the first `ClassLabel` within a feature."""
    if isinstance(feature, list):
        return next((found for one in feature if (found := _label_names(one))), None)
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return list(feature["names"])
    return next((found for one in feature.values() if (found := _label_names(one))), None)


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


def _image_ids(rows: list[_Row]) -> list[int | str]:
    """The dataset's ids where it has them, each once; else numbers from 1."""
    ids = [row.image_id for row in rows]
    are_ids = all(isinstance(one, int | str) and not isinstance(one, bool) for one in ids)
    return ids if are_ids and len(set(ids)) == len(ids) else list(range(1, len(rows) + 1))


def _boxes(row: _Row, box_format: BoxFormat, classes: int) -> list[RawBox]:
    boxes = []
    for k, (box, one, flag) in enumerate(zip(row.boxes, row.classes, row.ignored, strict=True)):
        place = f"{row.place}, field 'objects.{{}}' of box {k}"
        if flag not in (None, 0, 1):
            raise DataError(f"{place.format('ignored')}: {shown(flag)} is neither 0 nor 1")
        is_of_none = bool(flag) and one in (None, EVERY_CLASS)
        if not is_of_none and not isinstance(one, str) and (isinstance(one, bool) or one not in range(classes)):
            fault = f"{shown(one)} is not among the {classes} classes; correct it, or add the class"
            raise DataError(f"{place.format('category')}: {fault}")
        xyxy = _xyxy(box, box_format, place.format("bbox"))
        boxes.append(RawBox(xyxy, None if is_of_none else one, is_ignored=bool(flag), place=place.format("category")))
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


def _unpack(tables: Sequence[_Table]) -> tuple[Path, list[str]]:
    """Write the images that files hold into the cache folder, once.

    Returns:
        Their folder, and the name of each row's file in it; "" for rows without an image.
    """
    # Without their folder, so that files that are moved, as a dataset that was just written is, are known again.
    facts = [(table.file.name, table.file.stat().st_size, table.file.stat().st_mtime_ns) for table in tables]
    folder = cache_folder("datasets") / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    index = folder / "names.json"
    if not is_file(index):
        with suppress(SettingError), replacing_folder(folder) as temporary:  # another process may be faster
            names = _unpack_into(temporary / "images", tables)
            (temporary / index.name).write_text(json.dumps(names), encoding="utf-8")
    return folder / "images", json.loads(index.read_text(encoding="utf-8"))


def _unpack_into(folder: Path, tables: Sequence[_Table]) -> list[str]:
    names: list[str] = []
    taken: set[str] = set()
    for table in tables:
        for row in table.values(table.image):
            value = row[table.image]
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
