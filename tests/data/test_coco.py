from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image

from efficientdet.data import coco as reader
from efficientdet.data import coco_columns
from efficientdet.data.coco import read_coco
from efficientdet.data.coco_columns import read_columns
from efficientdet.data.records import (
    BOXES_CLIPPED,
    BOXES_DEGENERATE,
    BOXES_OF_SKIPPED,
    BOXES_OUTSIDE,
    EVERY_CLASS,
    IGNORED_REGIONS,
    IMAGES_OF_IGNORED,
    IMAGES_SKIPPED,
    IMAGES_WITHOUT_BOXES,
    Columns,
)
from efficientdet.errors import DataError

# What an error must name, by file: the place and the field.
REJECTED = {
    "missing_categories.json": ["'categories'", "missing"],
    "missing_bbox.json": ["annotation id 1", "'bbox'", "missing"],
    "nan_box.json": ["annotation id 1", "'bbox'", "NaN"],
    "string_in_box.json": ["annotation id 1", "'bbox'", '"10"'],
    "three_numbers.json": ["annotation id 1", "'bbox'", "[10, 10, 40]"],
    "duplicate_annotation_ids.json": ["annotation id 1 (index 1)", "'id'", "twice"],
    "duplicate_image_ids.json": ["image id 1 (index 1)", "'id'", "twice"],
    "unknown_category.json": ["annotation id 1", "'category_id'", "7", "1, 2"],
    "unknown_image.json": ["annotation id 1", "'image_id'", "99"],
    "missing_image_file.json": ["image id 3", "gone.jpg", "skip"],
    "path_traversal.json": ["image id 1", "'file_name'", "../../../../etc/hostname"],
    "size_mismatch.json": ["image id 1", "'width'", "999x999", "160x120"],
    "truncated.json": ["line 1, column", "cut off"],
    "empty.json": ["empty"],
    "list_at_top.json": ["object", "list"],
}
# What was changed and counted, by file.
ACCEPTED = {
    "good.json": {},
    "box_partly_outside.json": {BOXES_CLIPPED: 1, IMAGES_WITHOUT_BOXES: 1},
    "box_fully_outside.json": {BOXES_OUTSIDE: 1, IMAGES_WITHOUT_BOXES: 1},
    "negative_width.json": {BOXES_DEGENERATE: 1, IMAGES_WITHOUT_BOXES: 1},
    "zero_area.json": {BOXES_DEGENERATE: 1, IMAGES_WITHOUT_BOXES: 1},
    "id_gaps.json": {},
    "zero_based_ids.json": {},
    "crowd_only.json": {IGNORED_REGIONS: 1, IMAGES_WITHOUT_BOXES: 1, IMAGES_OF_IGNORED: 1},
    "no_annotations.json": {IMAGES_WITHOUT_BOXES: 2},
    "missing_area.json": {IMAGES_WITHOUT_BOXES: 1},
}


def bad(shared_data: Path) -> tuple[Path, dict[str, Any]]:
    folder = shared_data / "bad_annotations"
    return folder, json.loads((folder / "manifest.json").read_text())


def test_every_file_of_the_manifest_is_tested_here(shared_data: Path) -> None:
    _, manifest = bad(shared_data)
    files = {name: entry["expect"] for name, entry in manifest.items() if name.endswith(".json")}
    assert files == dict.fromkeys(REJECTED, "reject") | dict.fromkeys(ACCEPTED, "accept")


@pytest.mark.parametrize("name", REJECTED)
def test_bad_files_are_refused_by_place_and_field(shared_data: Path, name: str) -> None:
    folder, _ = bad(shared_data)
    with pytest.raises(DataError) as caught:
        read_coco(folder / name)
    message = str(caught.value)
    for part in [str(folder / name), *REJECTED[name]]:
        assert part in message


@pytest.mark.parametrize("name", ACCEPTED)
def test_acceptable_files_load_and_count(shared_data: Path, name: str) -> None:
    folder, manifest = bad(shared_data)
    records = read_coco(folder / name)
    assert records.training_boxes == manifest[name]["training_boxes"]
    assert {key: value for key, value in records.counts.items() if value} == ACCEPTED[name]


def test_gaps_and_zero_based_ids_become_contiguous_labels(shared_data: Path) -> None:
    folder, _ = bad(shared_data)
    gaps = read_coco(folder / "id_gaps.json")
    assert gaps.category_ids == (1, 2, 90)
    assert [record.labels.tolist() for record in gaps.images] == [[0], [2]]
    zero_based = read_coco(folder / "zero_based_ids.json")
    assert [record.labels.tolist() for record in zero_based.images] == [[0], [1]]


def test_missing_picture_is_skipped_on_request(shared_data: Path) -> None:
    folder, _ = bad(shared_data)
    records = read_coco(folder / "missing_image_file.json", skip_missing=True)
    assert [record.image_id for record in records.images] == [1, 2]
    assert records.counts[IMAGES_SKIPPED] == 1
    assert records.counts[BOXES_OF_SKIPPED] == 1


def test_coco_tiny_is_read_whole(shared_data: Path) -> None:
    path = shared_data / "coco_tiny" / "instances.json"
    content = json.loads(path.read_text())
    records = read_coco(path)
    given_back = records.to_coco()
    assert len(records) == len(content["images"])
    assert len(records.class_names) == 80
    assert records.category_ids[-1] == 90
    crowds = sum(item["iscrowd"] for item in content["annotations"])
    assert records.counts[IGNORED_REGIONS] == crowds > 0
    assert records.training_boxes == len(content["annotations"]) - crowds
    order = [annotation_id for record in records.images for annotation_id in record.annotation_ids]
    by_id = {item["id"]: item for item in content["annotations"]}
    for annotation_id, item in zip(order, given_back["annotations"], strict=True):
        original = by_id[annotation_id]
        assert (item["image_id"], item["category_id"]) == (original["image_id"], original["category_id"])
        assert_allclose(item["bbox"], original["bbox"], atol=0.02)
        assert_allclose(item["area"], original["area"], rtol=1e-6)


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "x"}],
    } | changes


def annotation(**changes: Any) -> dict[str, Any]:
    return coco(annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} | changes])


def write(folder: Path, content: Any, name: str = "set.json") -> Path:
    picture = folder / "images" / "a.png"
    if not picture.is_file():
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(picture)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (annotation(bbox=[1, 2, float("inf"), 4]), ["annotation id 1", "'bbox'"]),
        (annotation(bbox=[1, 2, True, 4]), ["annotation id 1", "'bbox'"]),
        (annotation(bbox=[1, 2, 10**400, 4]), ["annotation id 1", "'bbox'"]),
        (annotation(bbox="1 2 3 4"), ["annotation id 1", "'bbox'"]),
        (annotation(bbox=None), ["annotation id 1", "'bbox'"]),
        (annotation(area="12"), ["annotation id 1", "'area'"]),
        (annotation(area=float("nan")), ["annotation id 1", "'area'"]),
        (annotation(iscrowd=2), ["annotation id 1", "'iscrowd'"]),
        (annotation(iscrowd="0"), ["annotation id 1", "'iscrowd'"]),
        (annotation(ignore=2), ["annotation id 1", "'ignore'", "2"]),
        (annotation(iscrowd=1, category_id=9), ["annotation id 1", "'category_id'", "9"]),
        (annotation(category_id=None), ["annotation id 1", "'category_id'", "None"]),
        (annotation(id=None), ["index 0", "'id'"]),
        (annotation(id=True), ["index 0", "'id'"]),
        (annotation(image_id="1"), ["annotation id 1", "'image_id'", "'1'"]),
        (annotation(image_id=True), ["annotation id 1", "'image_id'", "True"]),
        (annotation(image_id=[1]), ["annotation id 1", "'image_id'"]),
        (annotation(category_id="1"), ["annotation id 1", "'category_id'"]),
        (annotation(category_id=True), ["annotation id 1", "'category_id'"]),
        (coco(annotations=[[1, 2]]), ["annotation at index 0", "[1, 2]"]),
        (coco(annotations=None), ["'annotations'", "NoneType"]),
        (coco(images=[]), ["'images'", "empty"]),
        (coco(images=[{"id": 1}]), ["image id 1", "'file_name'"]),
        (coco(images=[{"id": 1, "file_name": "a.png", "width": 40}]), ["image id 1", "'height'"]),
        (coco(images=[{"id": 1, "file_name": "a.png", "width": "40", "height": 30}]), ["'width'", '"40"']),
        (coco(images=[{"id": 1, "file_name": "a.png", "width": 10**400, "height": 30}]), ["image id 1", "'width'"]),
        (coco(categories=[]), ["categories", "no class names"]),
        (coco(categories=[{"id": "1", "name": "x"}]), ["index 0", "'id'", "'1'"]),
        (coco(categories=[{"id": 1}]), ["'name'", "None"]),
        (
            coco(categories=[{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]),
            ["category id 1 (index 1)", "twice"],
        ),
        (coco(categories=[{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]), ["'name'", "'x' is there twice"]),
        ('{\n "images": [,]}', ["line 2, column 13"]),
        ("[" * 100_000, ["not readable as JSON"]),
        (coco(images=[{"id": 1, "file_name": "x" * 300 + ".png"}]), ["image id 1", "the image 'xxx", "is not in"]),
        (coco(images=[{"id": 1, "file_name": "x/" * 3000}]), ["image id 1", "is not in"]),
        (coco(images=[{"id": 1, "file_name": "\ud800.png"}]), ["image id 1", "ud800", "is not in"]),
        (coco(categories=[{"id": 1, "name": "x" * 999}, {"id": 2, "name": "x" * 999}]), ["'name'", "twice"]),
        (coco(categories=[{"id": 1, "name": "x" * 20_000}]), ["'name'", "class name 0 has 20,000 characters"]),
        (annotation(image_id="x" * 20_000), ["annotation id 1", "'image_id'"]),
        (annotation(bbox=[[[[]]]] * 1000), ["annotation id 1", "'bbox'"]),
        ('{"images": ' + "9" * 5000 + "}", ["not readable as JSON"]),
    ],
)
def test_faults_name_file_place_and_field(tmp_path: Path, content: Any, parts: list[str]) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_coco(path)
    message = str(caught.value)
    for part in [str(path), *parts]:
        assert part in message
    assert len(message) < 600


def test_a_damaged_picture_names_the_entry(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"set.json: image id 1 \(index 0\): .*a\.png"):
        read_coco(path)


def test_sizes_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, coco(images=[{"id": "p1", "file_name": "a.png"}], annotations=[]))
    record = read_coco(path).images[0]
    assert (record.image_id, record.image_size) == ("p1", (30, 40))


def test_a_category_without_boxes_is_kept(tmp_path: Path) -> None:
    categories = [{"id": 5, "name": "unused"}, {"id": 1, "name": "x"}]
    records = read_coco(write(tmp_path, coco(categories=categories)))
    assert records.class_names == ("x", "unused")
    assert records.category_ids == (1, 5)


@pytest.mark.parametrize(
    ("annotations", "picture"),
    [
        ("train.json", "images/a.png"),
        ("train.json", "a.png"),
        ("train.json", "train/a.png"),
        ("_annotations.coco.json", "a.png"),
        ("annotations/instances_train2017.json", "train2017/a.png"),
        ("annotations/instances_val2017.json", "images/val2017/a.png"),
        ("annotations/train.json", "images/a.png"),
    ],
)
def test_pictures_are_found_in_the_usual_layouts(tmp_path: Path, annotations: str, picture: str) -> None:
    path = tmp_path / "set" / annotations
    for file in (path, tmp_path / "set" / picture):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "set" / picture)
    path.write_text(json.dumps(coco()))
    assert read_coco(path).images[0].path == tmp_path / "set" / picture


def test_image_folder_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, coco(), "elsewhere/set.json")
    assert read_coco(str(path), str(tmp_path / "images")).images[0].path == tmp_path / "images" / "a.png"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 90), min_size=1, max_size=20, unique=True),
    st.data(),
)
def test_labels_are_contiguous_and_lead_back(tmp_path: Path, ids: list[int], data: st.DataObject) -> None:
    used = data.draw(st.lists(st.sampled_from(ids), max_size=10))
    annotations = [
        {"id": index, "image_id": 1, "category_id": category_id, "bbox": [1, 2, 3, 4]}
        for index, category_id in enumerate(used)
    ]
    categories = [{"id": category_id, "name": f"class {category_id}"} for category_id in ids]
    records = read_coco(write(tmp_path, coco(annotations=annotations, categories=categories)))
    labels = records.images[0].labels
    assert records.category_ids == tuple(sorted(ids))
    assert records.class_names == tuple(f"class {category_id}" for category_id in sorted(ids))
    assert [records.category_ids[label] for label in labels] == used
    assert [item["category_id"] for item in records.to_coco()["annotations"]] == used
    assert labels.dtype == np.int64


def test_ignored_regions_may_belong_to_a_class_or_to_every_class(tmp_path: Path) -> None:
    regions = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 2, 3, 4], "ignore": 1},
        {"id": 3, "image_id": 1, "bbox": [9, 2, 3, 4], "ignore": 1},
        {"id": 4, "image_id": 1, "category_id": 2, "bbox": [9, 9, 3, 4], "ignore": 0},
    ]
    categories = [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]
    records = read_coco(write(tmp_path, coco(annotations=regions, categories=categories)))
    assert records.images[0].labels.tolist() == [0, 1, EVERY_CLASS, 1]
    assert records.images[0].is_ignored.tolist() == [True, True, True, False]
    assert records.counts[IGNORED_REGIONS] == 3 and records.training_boxes == 1
    # The evaluators know regions of one class alone.
    back = records.to_coco()["annotations"]
    assert [(a["category_id"], a["iscrowd"], a["bbox"][0]) for a in back] == [
        (1, 1, 1), (2, 1, 5), (1, 1, 9), (2, 1, 9), (2, 0, 9),
    ]  # fmt: skip
    assert [a["id"] for a in back] == [1, 2, 3, 4, 5]


def test_a_mask_leaves_an_image_a_negative(tmp_path: Path) -> None:
    mask = {"id": 1, "image_id": 1, "category_id": None, "bbox": [1, 2, 3, 4], "ignore": 1}
    records = read_coco(write(tmp_path, coco(annotations=[mask])))
    assert records.images[0].is_negative
    assert records.counts[IMAGES_WITHOUT_BOXES] == 1 and records.counts[IMAGES_OF_IGNORED] == 0


pytest.importorskip("msgspec")

numbers = st.integers(-5, 700) | st.floats(-10, 700) | st.floats(allow_nan=True, allow_infinity=True) | st.integers()
odd = st.none() | st.booleans() | st.text(max_size=2) | st.just([]) | numbers
few = st.integers(0, 4)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is usual, nine times of ten."""
    return st.integers(0, 9).flatmap(lambda chance: usual if chance else odd)


annotations = st.fixed_dictionaries(
    {"id": mostly(st.integers(0, 10**6)), "image_id": mostly(few | few.map(float)), "category_id": mostly(few),
     "bbox": st.lists(numbers, min_size=4, max_size=4) | mostly(st.lists(numbers, max_size=5))},
    optional={"area": mostly(numbers), "iscrowd": mostly(st.integers(0, 1)), "ignore": st.integers(0, 1),
              "segmentation": st.sampled_from([[[1, 2]], [{}, {}], "}, {", "]"])},
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


def look(found: tuple[list[Any], Columns]) -> list[Any]:
    columns = found[1]
    return [
        list(columns.file_names), list(columns.image_ids), columns.sizes.tolist(), columns.box_counts.tolist(),
        columns.boxes_xyxy.tolist(), columns.labels.tolist(), list(columns.annotation_ids), columns.is_ignored.tolist(),
        columns.areas.tolist(), [columns.place(index) for index in range(len(columns.sizes))],
    ]  # fmt: skip


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files)
@example(SOUND)
@example({**SOUND, "images": [{"id": 3, "file_name": "a.png", "width": 40, "height": 2**31}]})
def test_what_is_read_fast_is_what_is_read_carefully(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    with patch.object(coco_columns, "CHUNK", 1):  # a piece for every annotation
        fast = read_columns(path)
    try:
        careful = reader._read_carefully(path)
    except DataError:
        if fast is not None:  # categories are checked after either
            with pytest.raises(DataError):
                reader._categories(fast[0], path)
        return
    if fast is not None:
        assert look(fast) == look(careful)


@pytest.mark.parametrize("chunk", [1, 100, coco_columns.CHUNK])
@pytest.mark.parametrize("boxes", [0, 1, 9])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_sound_file_is_read_fast(tmp_path: Path, chunk: int, boxes: int, indent: int | None) -> None:
    path, content = tmp_path / "set.json", {**SOUND, "annotations": SOUND["annotations"][:boxes]}
    path.write_text(json.dumps(content, indent=indent))
    with patch.object(coco_columns, "CHUNK", chunk):
        fast = read_columns(path)
    assert fast is not None and look(fast) == look(reader._read_carefully(path))


@pytest.mark.parametrize("value", [None, {}, "", 12, "}, {"])
def test_a_file_without_a_list_of_annotations_is_not_read_fast(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps({**SOUND, "annotations": value}))
    assert read_columns(path) is None


@pytest.mark.parametrize("inner", [[], SOUND["annotations"][:2]])
def test_a_list_of_annotations_in_something_else_is_not_taken_for_the_file_s(tmp_path: Path, inner: list[Any]) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"info": {"annotations": inner}, **SOUND}))
    assert read_columns(path) is None
    path.write_text(json.dumps({"info": {"text": '"annotations": ['}, **SOUND, "more": {"annotations": inner}}))
    fast = read_columns(path)
    assert fast is not None and look(fast) == look(reader._read_carefully(path))


def test_ids_may_be_written_as_floats(tmp_path: Path) -> None:
    """As pandas writes whole numbers of a column that has gaps."""
    box = {"id": 4.0, "image_id": 1.0, "category_id": 7.0, "bbox": [1, 2, 3, 4]}
    categories = [{"id": 7.0, "name": "x"}]
    for image_id in (1, 1.0):  # read fast, and carefully
        image = {"id": image_id, "file_name": "a.png"}
        records = read_coco(write(tmp_path, coco(images=[image], annotations=[box], categories=categories)))
        assert (records.images[0].image_id, records.images[0].annotation_ids, records.category_ids) == (1, [4], (7,))
