"""The annotation files of each format, written from records into a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.csv_file import COLUMNS
from efficientdet.data.fields import CLASSES_FILE
from efficientdet.data.records import EVERY_CLASS, ImageRecord, Records
from efficientdet.data.settings import Format
from efficientdet.errors import require
from efficientdet.text import in_json

Splits = Mapping[str, Records]
Names = Mapping[str, list[str]]
# Rows of a parquet file that are written together: their images are in memory.
ROWS_AT_A_TIME = 64


def image_name(to: Format, split: str, name: str) -> Path:
    """Where an image goes, below the dataset's folder."""
    return {
        "coco": Path(split, name), "voc": Path("JPEGImages", name), "yolo": Path("images", split, name),
        "csv": Path("images", name), "parquet": Path("data"),
    }[to]  # fmt: skip


def shortest(values: NDArray[np.float32]) -> list[float]:
    """The shortest decimal numbers that become these float32 when read."""
    return [float(str(value)) for value in values]


def _side(low: float, high: float) -> float:
    """The difference, without digits that come from rounding if it leads back to the same float32."""
    side = round(high - low, 9)
    return side if np.float32(low + side) == np.float32(high) else high - low


def _boxes(records: Records, record: ImageRecord) -> Iterator[tuple[list[float], str | None, int, bool]]:
    """Corners, class name (None: every class), index and whether it is an ignored region of each box."""
    for index, (box, label) in enumerate(zip(record.boxes_xyxy, record.labels.tolist(), strict=True)):
        name = None if label == EVERY_CLASS else records.class_names[label]
        yield shortest(box), name, index, bool(record.is_ignored[index])


def _write_coco(folder: Path, splits: Splits, names: Names) -> None:
    for split, records in splits.items():
        annotations, images = [], []
        image_ids = _unique([record.image_id for record in records.images])
        numbers = iter(_unique([one for record in records.images for one in record.annotation_ids], whole=True))
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(records.category_ids, records.class_names, strict=True)
        ]
        for record, name, image_id in zip(records.images, names[split], image_ids, strict=True):
            images.append({"id": image_id, "file_name": name, "width": record.width, "height": record.height})
            for (x1, y1, x2, y2), _, index, is_ignored in _boxes(records, record):
                label = int(record.labels[index])
                annotations.append({
                    "id": next(numbers), "image_id": image_id,
                    "category_id": None if label == EVERY_CLASS else records.category_ids[label],
                    "bbox": [x1, y1, _side(x1, x2), _side(y1, y2)],
                    "area": shortest(record.areas[index : index + 1])[0],
                    "iscrowd": int(is_ignored), **({"ignore": 1} if label == EVERY_CLASS else {}),
                })  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(in_json(json.dumps(content, ensure_ascii=False)), encoding="utf-8")


def _unique(ids: list[int | str], whole: bool = False) -> list[int | str]:
    """The ids if each is there once (and is a whole number), else numbers from 1."""
    is_sound = len(set(ids)) == len(ids) and (not whole or all(isinstance(one, int) and one > 0 for one in ids))
    return ids if is_sound else list(range(1, len(ids) + 1))


def _write_voc(folder: Path, splits: Splits, names: Names) -> None:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "JPEGImages").mkdir(exist_ok=True)
    for split, records in splits.items():
        for record, name in zip(records.images, names[split], strict=True):
            objects = "".join(_voc_object(*box) for box in _boxes(records, record))
            text = (
                f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{escape(name)}</filename>\n"
                f"  <size><width>{record.width}</width><height>{record.height}</height><depth>3</depth></size>\n"
                f"{objects}</annotation>\n"
            )
            (folder / "Annotations" / f"{PurePosixPath(name).stem}.xml").write_text(text, encoding="utf-8")
        stems = "".join(f"{PurePosixPath(name).stem}\n" for name in names[split])
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(stems, encoding="utf-8")
    _write_classes(folder, splits)


def _voc_object(box: list[float], name: str | None, index: int, is_ignored: bool) -> str:
    x1, y1, x2, y2 = box
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
    bndbox = "".join(f"<{field}>{_plain(value)}</{field}>" for field, value in corners)
    head = "<ignore>1</ignore>" if name is None else f"<name>{escape(name)}</name>"
    return f"  <object>{head}<difficult>{int(is_ignored)}</difficult><bndbox>{bndbox}</bndbox></object>\n"


def _plain(value: float) -> str:
    """A number without a needless point, as readers that expect whole ones want it."""
    return str(int(value)) if value == int(value) else repr(value)


def _write_classes(folder: Path, splits: Splits) -> None:
    class_names = next(iter(splits.values())).class_names
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def _write_yolo(folder: Path, splits: Splits, names: Names) -> None:
    for split, records in splits.items():
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for record, name in zip(records.images, names[split], strict=True):
            lines: dict[str, list[str]] = {"labels": [], "ignored": []}
            for (x1, y1, x2, y2), _, index, is_ignored in _boxes(records, record):
                center = (x1 + x2) / 2 / record.width, (y1 + y2) / 2 / record.height
                sides = (x2 - x1) / record.width, (y2 - y1) / record.height
                numbers = " ".join(f"{number:.10f}".rstrip("0").rstrip(".") for number in (*center, *sides))
                lines["ignored" if is_ignored else "labels"].append(f"{int(record.labels[index])} {numbers}\n")
            for kind, of_kind in lines.items():
                if of_kind or kind == "labels":  # an empty label file says that an image is a negative
                    file = (folder / kind / split / name).with_suffix(".txt")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("".join(of_kind), encoding="utf-8")
    class_names = next(iter(splits.values())).class_names
    lines_of_splits = "".join(f"{split}: images/{split}\n" for split in splits)
    # JSON is YAML, and needs no library to write.
    (folder / "data.yaml").write_text(f"{lines_of_splits}names: {json.dumps(class_names)}\n", encoding="utf-8")


def _write_csv(folder: Path, splits: Splits, names: Names) -> None:
    (folder / "images").mkdir(exist_ok=True)
    with (folder / "annotations.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, "split", "ignored"))
        for split, records in splits.items():
            for record, name in zip(records.images, names[split], strict=True):
                boxes = list(_boxes(records, record))
                for box, class_name, _, is_ignored in boxes:
                    writer.writerow((name, *map(_plain, box), class_name or "", split, int(is_ignored)))
                if not boxes:
                    writer.writerow((name, "", "", "", "", "", split, 0))
    _write_classes(folder, splits)


def _write_parquet(folder: Path, splits: Splits, names: Names) -> None:
    pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    (folder / "data").mkdir()
    for split, records in splits.items():
        ids_are_numbers = all(isinstance(one.image_id, int) and abs(one.image_id) < 2**63 for one in records.images)
        schema = _schema(pyarrow, records.class_names, ids_are_numbers)
        with parquet.ParquetWriter(folder / "data" / f"{split}-00000-of-00001.parquet", schema) as writer:
            for start in range(0, len(records), ROWS_AT_A_TIME):
                chunk = slice(start, start + ROWS_AT_A_TIME)
                rows = [
                    _parquet_row(records, record, name, record.image_id if ids_are_numbers else str(record.image_id))
                    for record, name in zip(records.images[chunk], names[split][chunk], strict=True)
                ]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _parquet_row(records: Records, record: ImageRecord, name: str, image_id: int | str) -> dict[str, Any]:
    boxes = list(_boxes(records, record))
    return {
        "image": {"bytes": record.path.read_bytes(), "path": name},
        "image_id": image_id,
        "width": record.width,
        "height": record.height,
        "objects": {
            "bbox": [[x1, y1, _side(x1, x2), _side(y1, y2)] for (x1, y1, x2, y2), *_ in boxes],
            "category": [None if name is None else int(record.labels[index]) for _, name, index, _ in boxes],
            "ignored": [is_ignored for *_, is_ignored in boxes],
        },
    }


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}


def _schema(pyarrow: Any, class_names: tuple[str, ...], ids_are_numbers: bool) -> Any:
    """The columns, with what the library `datasets` wants to know of them."""
    number, id_type = pyarrow.int64(), pyarrow.int64() if ids_are_numbers else pyarrow.string()
    objects = [
        ("bbox", pyarrow.list_(pyarrow.list_(pyarrow.float64()))),
        ("category", pyarrow.list_(number)),
        ("ignored", pyarrow.list_(pyarrow.bool_())),
    ]
    columns = [
        ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        ("image_id", id_type), ("width", number), ("height", number), ("objects", pyarrow.struct(objects)),
    ]  # fmt: skip
    features = {
        "image": {"_type": "Image"},
        "image_id": _value("int64" if ids_are_numbers else "string"),
        "width": _value("int64"),
        "height": _value("int64"),
        "objects": {
            "bbox": _list(_list(_value("float64"))),
            "category": _list({"names": list(class_names), "_type": "ClassLabel"}),
            "ignored": _list(_value("bool")),
        },
    }
    return pyarrow.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


WRITERS: dict[Format, Callable[[Path, Splits, Names], None]] = {
    "coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo, "csv": _write_csv, "parquet": _write_parquet,
}  # fmt: skip
