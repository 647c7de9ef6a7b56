"""Parquet files, written here by pyarrow and by the library `datasets` itself."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.data.parquet import read_parquet
from efficientdet.data.read_split import read_split, read_splits
from efficientdet.data.records import EVERY_CLASS, Records
from efficientdet.errors import DataError, MissingSplitError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))


def encoded(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def row(**changes: Any) -> dict[str, Any]:
    objects = {"bbox": [[1.0, 2.0, 20.0, 25.5]], "category": ["dog"]}
    return {"image": {"bytes": encoded(), "path": "a.png"}, "objects": objects} | changes


def write(path: Path, *rows: dict[str, Any], names: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(list(rows))
    if names is not None:
        label = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
        features = {"image": {"_type": "Image"}, "objects": {"category": label}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)
    return path


def look(records: Records) -> list[Any]:
    return [(r.image_id, r.file_name, r.boxes_xyxy.tolist(), r.labels.tolist()) for r in records.images]


def test_rows_become_records_and_images_are_unpacked_once(tmp_path: Path) -> None:
    second = row(image={"bytes": encoded(200), "path": None}, objects={"bbox": [], "category": []})
    path = write(tmp_path / "set" / "train.parquet", row(), second)
    records = read_parquet(path)
    assert look(records) == [(1, "a.png", [[1, 2, 21, 27.5]], [0]), (2, "0000001.png", [], [])]
    assert records.class_names == ("dog",) and records.source == path
    unpacked = records.images[1].path
    assert unpacked.is_relative_to(tmp_path / "cache") and unpacked.read_bytes() == encoded(200)
    before = unpacked.stat().st_mtime_ns
    assert look(read_parquet(path)) == look(records) and unpacked.stat().st_mtime_ns == before


def test_numbers_mean_the_declared_names(tmp_path: Path) -> None:
    objects = {"bbox": [[1, 2, 20, 25], [0, 0, 5, 5]], "category": [2, 0], "id": [7, 8], "area": [1, 2]}
    path = write(tmp_path / "x.parquet", row(objects=objects, image_id=17), names=["cat", "dog", "emu"])
    records = read_parquet(path)
    assert records.class_names == ("cat", "dog", "emu") and records.images[0].labels.tolist() == [2, 0]
    assert records.images[0].image_id == 17


def test_numbers_without_names_are_named_by_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", row(objects={"bbox": [[1, 2, 20, 25]], "category": [1]}))
    with pytest.raises(DataError, match=r"x.parquet, field 'objects.category': numbers \(\[1\]\) without names; .*txt"):
        read_parquet(path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert read_parquet(path).class_names == ("cat", "dog")


def test_objects_may_be_a_list_and_images_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded())
    objects = [
        {"bbox": [1, 2, 20, 25], "category": "dog", "iscrowd": 0},
        {"bbox": [1, 2, 3, 4], "category": None, "iscrowd": 1},
    ]
    records = read_parquet(write(tmp_path / "x.parquet", row(image="images/a.png", objects=objects)))
    assert records.images[0].labels.tolist() == [0, EVERY_CLASS]
    assert records.images[0].is_ignored.tolist() == [False, True]
    assert records.images[0].path == tmp_path / "images" / "a.png"


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("xyxy", [1, 2, 21, 27]), ("xywh", [1, 2, 20, 25]), ("cxcywh", [11 / 40, 14.5 / 30, 0.5, 25 / 30])],
)
def test_the_box_format_can_be_declared(tmp_path: Path, box_format: Any, box: list[float]) -> None:
    path = write(tmp_path / "x.parquet", row(objects={"bbox": [[float(x) for x in box]], "category": ["dog"]}))
    np.testing.assert_allclose(read_parquet(path, box_format).images[0].boxes_xyxy, [[1, 2, 21, 27]], atol=1e-5)
    np.testing.assert_allclose(
        read_split(path, "train", box_format=box_format).images[0].boxes_xyxy, [[1, 2, 21, 27]], atol=1e-5
    )


def test_boxes_in_another_format_are_doubted(tmp_path: Path) -> None:
    boxes = [[20.0, 10, 38, 28]] * 6
    path = write(tmp_path / "x.parquet", row(objects={"bbox": boxes, "category": ["dog"] * 6}))
    with pytest.raises(DataError, match="6 of 6 boxes, read as xywh, .*--box-format xyxy"):
        read_parquet(path)
    assert read_parquet(path, "xyxy").training_boxes == 6


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"objects": {"bbox": [[1.0, 2, 3]], "category": ["dog"]}}, ["row 1", "'objects.bbox' of box 0", "four"]),
        ({"objects": {"bbox": [[1.0, 2, 3, float("nan")]], "category": ["dog"]}}, ["row 1", "'objects.bbox'"]),
        ({"objects": {"bbox": [[1.0, 2, 3, 4]], "category": []}}, ["row 1", "'objects.category'", "one for each of 1"]),
        ({"objects": {"bbox": [[1.0, 2, 3, 4]], "category": [None]}}, ["row 1", "'objects.category' of box 0", "None"]),
        ({"image": {"bytes": None, "path": None}}, ["row 1", "'image'", "neither"]),
        ({"image": {"bytes": None, "path": "/etc/hostname"}}, ["row 1", "'image'", "leaves"]),
        ({"image": {"bytes": b"no image", "path": "b.png"}}, ["row 1", "b.png"]),
    ],
)  # fmt: skip
def test_faults_name_row_and_field(tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    path = write(tmp_path / "x.parquet", row(), row(**change))
    with pytest.raises(DataError) as caught:
        read_parquet(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(("column", "words"), [("image", "of images"), ("objects", "of boxes")])
def test_missing_columns_are_named(tmp_path: Path, column: str, words: str) -> None:
    path = write(tmp_path / "x.parquet", {name: value for name, value in row(other=1).items() if name != column})
    with pytest.raises(DataError, match=f"x.parquet: no column {words}: sought .*other"):
        read_parquet(path)


def test_no_parquet_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="x.parquet: not readable as parquet"):
        read_parquet(tmp_path / "x.parquet")


def test_files_of_the_hub_are_found_and_share_their_classes(tmp_path: Path) -> None:
    cat = row(objects={"bbox": [[1.0, 2, 3, 4]], "category": ["cat"]})
    write(tmp_path / "data" / "train-00000-of-00002.parquet", row())
    write(tmp_path / "data" / "train-00001-of-00002.parquet", row())
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", cat)
    splits = read_splits(tmp_path)
    assert {name: len(records) for name, records in splits.items()} == {"train": 2, "val": 1}
    assert splits["train"].class_names == splits["val"].class_names == ("cat", "dog")
    assert len({image.path for image in splits["train"].images}) == 2
    with pytest.raises(MissingSplitError, match="data/test-"):
        read_split(tmp_path, "test")


def test_what_the_library_datasets_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
               "category": datasets.List(datasets.ClassLabel(names=["cat", "dog"]))}  # fmt: skip
    features = datasets.Features({"image_id": datasets.Value("int64"), "image": datasets.Image(), "objects": objects})
    rows = [{"image_id": 5 + number, "image": {"bytes": encoded(number), "path": f"{number}.png"},
             "objects": {"bbox": [[1, 2, 20, 25]] * number, "category": [1] * number}}
            for number in range(3)]  # fmt: skip
    whole = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(str(tmp_path / "saved"))
    whole.save_to_disk(str(tmp_path / "alone"))
    whole.to_parquet(str(tmp_path / "train.parquet"))
    expected = [(5 + n, f"{n}.png", [[1, 2, 21, 27]] * n, [1] * n) for n in range(3)]
    for data in (tmp_path / "saved", tmp_path / "alone", tmp_path / "train.parquet", tmp_path):
        records = read_split(data, "train")
        assert records.class_names == ("cat", "dog")
        assert look(records) == expected
    assert look(read_split(tmp_path / "saved", "test")) == expected[1:2]
    assert set(read_splits(tmp_path / "saved")) == {"train", "test"}
    assert set(read_splits(tmp_path / "alone")) == {"train"}
