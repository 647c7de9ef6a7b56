"""The fast reader of COCO files reads what the careful one reads, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from efficientdet.data import coco
from efficientdet.data.coco_columns import CocoColumns, read_columns
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


def look(found: CocoColumns) -> list[Any]:
    columns = found.columns
    return [
        list(columns.file_names), list(columns.image_ids), columns.sizes.tolist(), columns.box_counts.tolist(),
        columns.xyxy.tolist(), columns.labels.tolist(), list(columns.annotation_ids), columns.is_ignored.tolist(),
        columns.areas.tolist(), [columns.place(index) for index in range(len(columns.sizes))],
    ]  # fmt: skip


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files)
@example(SOUND)
def test_what_is_read_fast_is_what_is_read_carefully(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    fast = read_columns(path)
    try:
        careful = coco._read_carefully(path)
    except DataError:
        if fast is not None:  # categories are checked after either
            with pytest.raises(DataError):
                coco._categories(fast.categories, path)
        return
    if fast is not None:
        assert look(fast) == look(careful)


def test_a_sound_file_is_read_fast(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(SOUND))
    assert read_columns(path) is not None
