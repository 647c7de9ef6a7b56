"""Records: columns that look like images, shared by processes of either kind."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # as in every process that starts loaders; it teaches pickle to pass memory
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.data.builder import RawBox, RawImage, cleaned, columns_of
from efficientdet.data.records import EVERY_CLASS, Column, ImageTable, Records

texts = st.lists(st.text(max_size=8) | st.text(alphabet="\ud800aé", max_size=3), max_size=6)
ids = st.lists(st.integers(-5, 5) | st.integers(), max_size=6) | st.lists(
    st.integers() | st.text(alphabet="01x\0é", max_size=3), max_size=6
)


@given(texts)
def test_texts_come_back(given_texts: list[str]) -> None:
    assert list(Column(given_texts)) == given_texts


@given(ids, st.integers(0, 6), st.integers(0, 6))
def test_ids_come_back_with_their_types(given_ids: list[int | str], start: int, end: int) -> None:
    start, end = min(start, len(given_ids)), min(end, len(given_ids))
    found = Column(given_ids)[start:end]
    assert found == given_ids[start:end]
    assert list(map(type, found)) == list(map(type, given_ids[start:end]))


def make(folder: Path) -> Records:
    box = RawBox((10, 10, 50, 40), 1, "a", area=7.0)
    images = [
        RawImage("day/a.jpg", "", [box, box._replace(label=0, annotation_id=5)], (100, 90), "first"),
        RawImage("b.jpg", "", [], (50, 60), 2),
        RawImage(str(folder / "elsewhere" / "c.jpg"), "", [RawBox((1, 2, 3, 4), EVERY_CLASS, 6, True)], (50, 60), 3),
    ]
    return cleaned(folder / "set.json", folder / "images", columns_of(images), ["x", "y"], [3, 90])


def look(records: Records) -> list[Any]:
    return [
        (r.image_id, r.path, r.file_name, r.image_size, r.boxes_xyxy.tolist(), r.labels.tolist(), r.is_ignored.tolist(),
         r.areas.tolist(), r.annotation_ids)
        for r in records.images
    ]  # fmt: skip


def test_images_are_made_from_columns(tmp_path: Path) -> None:
    records = make(tmp_path)
    box = [10.0, 10.0, 50.0, 40.0]
    assert look(records) == [
        ("first", tmp_path / "images/day/a.jpg", "day/a.jpg", (100, 90), [box, box], [1, 0], [False] * 2, [7, 7],
         ["a", 5]),
        (2, tmp_path / "images/b.jpg", "b.jpg", (50, 60), [], [], [], [], []),
        (3, tmp_path / "elsewhere/c.jpg", "c.jpg", (50, 60), [[1, 2, 3, 4]], [-1], [True], [4], [6]),
    ]  # fmt: skip
    assert len(records) == len(records.images) == 3 and records.training_boxes == 2
    assert records.boxes_by_class().tolist() == [1, 1] and records.table.negatives == 2
    assert [image.image_id for image in records.images[1:]] == [2, 3]
    assert records.images[-1].image_id == 3 and records.images[np.int64(1)].image_id == 2
    for index in (3, -4):
        with pytest.raises(IndexError):
            records.images[index]


def test_columns_are_made_from_images(tmp_path: Path) -> None:
    records = make(tmp_path)
    again = records.of_images(records.images)
    assert isinstance(again.images, ImageTable) and look(again) == look(records)
    assert look(records.of_images([])) == [] and records.of_images([]).training_boxes == 0
    kept = records.images[0].only(np.array([False, True]))
    assert (kept.labels.tolist(), kept.areas.tolist(), kept.annotation_ids) == ([0], [7], [5])


def test_copies_are_the_same_and_apart(tmp_path: Path) -> None:
    records = make(tmp_path)
    for other in (pickle.loads(pickle.dumps(records)), copy.deepcopy(records)):
        assert look(other) == look(records)
        other.images.boxes_xyxy[0] = 0
        assert records.images[0].boxes_xyxy[0].tolist() == [10, 10, 50, 40]


# Of another process: say what is there, and write where the starting process can see it.
IN_THE_PROCESS = """
with open(path, "w") as file:
    file.write(repr([(r.image_id, r.labels.tolist(), r.boxes_xyxy.tolist(), r.annotation_ids) for r in records.images]))
records.images.labels[0] = 77
"""


def test_spawned_processes_share_the_columns(tmp_path: Path) -> None:
    records = make(tmp_path)
    expected = [(r.image_id, r.labels.tolist(), r.boxes_xyxy.tolist(), r.annotation_ids) for r in records.images]
    for number in range(2):  # the second gets the same memory, not another copy
        said = tmp_path / str(number)
        process = multiprocessing.get_context("spawn").Process(
            target=exec, args=(IN_THE_PROCESS, {"records": records, "path": str(said)})
        )
        process.start()
        process.join(120)
        assert process.exitcode == 0
        assert said.read_text() == repr(expected)
        assert isinstance(records.images, ImageTable)
        assert records.images.labels[0] == 77
        records.images.labels[0] = 1
