"""The fast readers of COCO files read what the careful one reads, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from efficientdet.data import coco, flat_json
from efficientdet.data.coco_columns import CocoColumns, read_columns
from efficientdet.data.flat_json import annotation_columns
from efficientdet.errors import DataError

pytest.importorskip("msgspec")

numbers = st.integers(-5, 700) | st.floats(-10, 700) | st.floats(allow_nan=True, allow_infinity=True) | st.integers()
odd = st.none() | st.booleans() | st.text(max_size=2) | st.just([]) | numbers
few = st.integers(0, 4)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is usual, nine times of ten."""
    return st.integers(0, 9).flatmap(lambda chance: usual if chance else odd)


annotations = st.fixed_dictionaries(
    {"id": mostly(st.integers(0, 10**6)), "image_id": mostly(few), "category_id": mostly(few),
     "bbox": st.lists(numbers, min_size=4, max_size=4) | mostly(st.lists(numbers, max_size=5))},
    optional={"area": mostly(numbers), "iscrowd": mostly(st.integers(0, 1)), "ignore": st.integers(0, 1),
              "segmentation": st.just([[1, 2]])},
)  # fmt: skip
# As tools write them: the same fields in the same order.
alike = st.fixed_dictionaries(
    {"id": st.integers(0, 10**6), "image_id": few, "category_id": few,
     "bbox": st.lists(st.integers(0, 600) | st.floats(0, 600), min_size=4, max_size=4), "area": st.floats(0, 1e6),
     "iscrowd": st.integers(0, 2)},
)  # fmt: skip
images = st.fixed_dictionaries(
    {"id": few, "file_name": mostly(st.just("a.png"))},
    optional={"width": mostly(st.just(40)), "height": mostly(st.just(30))},
)
categories = st.just([{"id": n, "name": str(n)} for n in range(5)])
files = st.fixed_dictionaries(
    {
        "images": st.lists(images, min_size=1, max_size=4, unique_by=lambda one: one["id"]),
        "annotations": st.lists(annotations, max_size=5) | st.lists(alike, max_size=5),
        "categories": categories | st.just([{"id": n, "name": "x"} for n in (2, 1)]),
    }
)
SOUND = {
    "images": [{"id": 3, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}],
    "categories": [{"id": 5, "name": "x"}],
    "annotations": [
        {"id": n, "image_id": 3 - 2 * (n % 2), "category_id": 5, "bbox": [n, 1, 2.5, 1e-3]} for n in range(9)
    ],
}


def look(columns: CocoColumns) -> list[Any]:
    images, boxes = columns.images, columns.boxes
    return [
        list(images.file_names), list(images.image_ids), images.sizes.tolist(), images.box_counts.tolist(),
        boxes.xyxy.tolist(), boxes.labels.tolist(), list(boxes.annotation_ids), boxes.is_ignored.tolist(),
        boxes.areas.tolist(),
    ]  # fmt: skip


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files)
@example(SOUND)
def test_what_is_read_fast_is_what_is_read_carefully(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    for shortest in (0, 10**9):  # with the reader of annotations that are alike, and without
        monkeypatch.setattr(flat_json, "SHORTEST", shortest)
        fast = read_columns(path)
        try:
            careful = coco._read_carefully(path)
        except DataError:
            if fast is not None:  # categories are checked after either
                with pytest.raises(DataError):
                    coco._categories(fast.categories, path)
            continue
        if fast is not None:
            assert look(fast) == look(careful)


def text_of(count: int = 50, **changes: Any) -> str:
    rows = [
        {"id": n, "image_id": 1, "category_id": 2, "bbox": [1.5, 2, n, 4], "area": 4.25 * n, "iscrowd": n % 2} | changes
        for n in range(count)
    ]
    return json.dumps(
        {"images": [{"id": 1, "file_name": "a.png"}], "annotations": rows, "categories": [{"id": 2, "name": "x"}]}
    )


@pytest.fixture
def _any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(flat_json, "SHORTEST", 0)


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize("space", [", ", ","])
def test_annotations_that_are_alike_become_a_table(space: str) -> None:
    found = annotation_columns(text_of().replace(", ", space).encode())
    assert found is not None
    assert found.columns["id"].tolist() == list(range(50)) and found.columns["id"].dtype == np.int64
    assert found.columns["bbox.2"].tolist() == list(range(50)) and found.columns["area"].tolist()[2] == 8.5
    assert json.loads(found.rest)["annotations"] == [] and json.loads(found.rest)["categories"]


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"area": 8.5', '"area": 8.5, "more": 1'), ('"area": 8.5', '"area": 8e5'), ('"area": 8.5', '"area": null'),
        ('"area": 8.5', '"area": "8.5"'), ('"area": 8.5', '"area": 8 5'), ('"area": 8.5', '"area": 8-5'),
        ('"area": 8.5', '"area": '), ('"area": 8.5', '"era": 8.5'), ('"id": 7,', '"id": 7.5,'),
        ('"iscrowd": 1', '"iscrowd": 2'), ('[1.5, 2, 7, 4]', '[1.5, 2, 7]'), ('[1.5, 2, 7, 4]', '[1.5, 2, , 4]'),
        ('[1.5, 2, 7, 4]', '[1.5, 2, 7.1.2, 4]'), ('{"id": 7', '{{"id": 7'), ('}, {"id": 7', '} {"id": 7'),
        ('{"id": 0', '{"segmentation": [], "id": 0'),
    ],
)  # fmt: skip
def test_whatever_is_not_alike_is_left_to_the_other_readers(before: str, after: str) -> None:
    text = text_of()
    assert annotation_columns(text.encode()) is not None and before in text
    assert annotation_columns(text.replace(before, after, 1).encode()) is None


@pytest.mark.usefixtures("_any_length")
def test_a_list_of_that_name_elsewhere_is_not_taken(tmp_path: Path) -> None:
    content = json.loads(text_of(3))
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"info": {"annotations": content["annotations"][:2]}} | content))
    assert read_columns(path) is None
    assert len(coco._read_carefully(path).boxes.xyxy) == 3
