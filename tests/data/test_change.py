"""Datasets converted, divided, merged and made smaller: nothing is lost that is not counted."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet.data.builder import RawBox, RawImage, build
from efficientdet.data.change import convert, merge, split, subset
from efficientdet.data.coco import read_coco
from efficientdet.data.read_split import read_split, read_splits
from efficientdet.data.records import EVERY_CLASS, ImageRecord, Records
from efficientdet.data.settings import WriteSettings
from efficientdet.data.write import AREAS, CATEGORY_IDS, RENAMED, THIN, write_dataset
from efficientdet.errors import DataError, SettingError, UnknownNameError

FORMATS = ["coco", "voc", "yolo", "csv", "parquet"]
CLASSES = ("zebra", "ant", "Müller & <Söhne>", "never used")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path_factory.mktemp("cache")))


def make(
    folder: Path, images: list[tuple[str, tuple[int, int], list[RawBox]]], category_ids: tuple[int, ...] = (0, 1, 2, 3)
) -> Records:
    found = []
    for number, (name, size, boxes) in enumerate(images, start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        found.append(RawImage(name, "place", boxes, size, number))
    return build(folder / "made", [folder], found, CLASSES, category_ids)


def look(image: ImageRecord, digits: int | None = None) -> tuple[Any, ...]:
    """What must survive: size, pixels, and the boxes, of which some formats set the ignored apart."""
    boxes = image.boxes_xyxy if digits is None else np.round(image.boxes_xyxy.astype(float), digits)
    rows = sorted(zip(image.is_ignored.tolist(), image.labels.tolist(), boxes.tolist(), strict=True))
    return image.image_size, image.path.read_bytes(), rows


@st.composite
def boxes_of(draw: st.DrawFn, size: tuple[int, int]) -> list[RawBox]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        coordinates = [draw(st.floats(0, side, width=32)) for side in (size[1], size[0]) for _ in range(2)]
        # VOC counts from 1, where a millionth of a pixel and less has fewer digits than at 0.
        coordinates = [0.0 if one < 1e-6 else one for one in coordinates]
        x1, x2, y1, y2 = (*sorted(coordinates[:2]), *sorted(coordinates[2:]))
        is_ignored = draw(st.booleans())
        label = draw(st.integers(-1 if is_ignored else 0, 2))
        found.append(RawBox((x1, y1, x2, y2), label, number, is_ignored))
    return found


sizes = st.tuples(st.integers(2, 200), st.integers(2, 200))
datasets = st.lists(sizes.flatmap(lambda size: st.tuples(st.just(size), boxes_of(size))), min_size=1, max_size=3)


@pytest.mark.parametrize("to", FORMATS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=datasets)
def test_what_is_written_is_what_is_read(to: Any, made: list[tuple[tuple[int, int], list[RawBox]]]) -> None:
    if to == "parquet":
        pytest.importorskip("pyarrow")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        records = make(folder / "images", [(f"{n}.png", size, boxes) for n, (size, boxes) in enumerate(made)])
        report = write_dataset({"val": records}, folder / "out", to, WriteSettings())
        back = read_split(folder / "out", "val")
        assert back.class_names == CLASSES
        thin = report.lost.pop(THIN, 0)
        assert not report.lost and (to == "voc" or not thin)
        ours = {image.file_name: image for image in back.images}
        assert sum(len(i.labels) for i in records.images) - sum(len(i.labels) for i in back.images) == thin
        for image in records.images:
            assert image.path.read_bytes() == ours[image.file_name].path.read_bytes()
            if to == "yolo":
                mine, theirs = look(image), look(ours[image.file_name])
                assert [row[:2] for row in mine[2]] == [row[:2] for row in theirs[2]]
                for kind in {row[:2] for row in mine[2]}:
                    pair = [np.array(sorted(r[2] for r in rows if r[:2] == kind)) for rows in (mine[2], theirs[2])]
                    np.testing.assert_allclose(np.sort(pair[0], 0), np.sort(pair[1], 0), atol=1e-4)
            elif not thin:
                assert look(image) == look(ours[image.file_name])


def some(number: int, label: int = 0) -> list[RawBox]:
    return [RawBox((1, 1, 20 + n, 21), label, n) for n in range(number)]


@pytest.mark.parametrize("formats", list(itertools.pairwise([*FORMATS, "coco", "yolo", "voc", "parquet", "csv"])))
def test_every_format_becomes_the_next(formats: Any, tmp_path: Path) -> None:
    if "parquet" in formats:
        pytest.importorskip("pyarrow")
    mask = RawBox((5, 5, 9, 9), EVERY_CLASS, 9, is_ignored=True)
    train = make(tmp_path / "t", [("a.png", (40, 30), [*some(2, 1), mask]), ("b.png", (20, 30), [])])
    val = make(tmp_path / "v", [("c.png", (40, 30), some(1, 2))])
    write_dataset({"train": train, "val": val}, tmp_path / "one", formats[0], WriteSettings())
    report = convert(tmp_path / "one", tmp_path / "two", formats[1])
    assert report.format == formats[1] and report.lost == {}
    assert report.splits == {
        "train": {"images": 2, "boxes": 2, "ignored regions": 1},
        "val": {"images": 1, "boxes": 1, "ignored regions": 0},
    }
    for name, before in (("train", train), ("val", val)):
        after = read_split(tmp_path / "two", name)
        assert after.class_names == CLASSES
        assert [look(one, 3) for one in after.images] == [look(one, 3) for one in before.images]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "t", "two", "v"]


def coco(folder: Path, annotations: list[dict[str, Any]], categories: dict[int, str], images: int = 2) -> Path:
    (folder / "images").mkdir(parents=True)
    entries = []
    for number in range(1, images + 1):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / "images" / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png"})
    content = {
        "images": entries,
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def test_what_a_format_has_no_place_for_is_counted(tmp_path: Path) -> None:
    boxes = [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 10], "area": 50},
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 1, 10], "area": 10},
        {"image_id": 2, "category_id": 9, "bbox": [30, 2, 90, 10]},
        {"image_id": 2, "category_id": 9, "bbox": [90, 2, 90, 10]},
    ]
    data = coco(tmp_path / "in", boxes, {7: "x", 9: "y"})
    clipped = {"boxes clipped": 1, "boxes dropped: outside": 1}
    assert convert(data, tmp_path / "coco", "coco").lost == clipped
    assert convert(data, tmp_path / "yolo", "yolo").lost == clipped | {AREAS: 1, CATEGORY_IDS: 2}
    voc = convert(data, tmp_path / "voc", "voc")
    assert voc.lost == clipped | {AREAS: 1, CATEGORY_IDS: 2, THIN: 1}
    assert read_split(tmp_path / "voc", "train").training_boxes == 2
    assert json.loads(json.dumps(voc.to_dict()))["lost"] == voc.lost
    back = read_coco(tmp_path / "coco" / "train.json")
    assert back.category_ids == (7, 9) and back.images[0].areas.tolist() == [50, 10]
    assert back.images[0].annotation_ids == [1, 2]


def test_names_that_cannot_stand_side_by_side_are_changed_and_counted(tmp_path: Path) -> None:
    names = ["day/a b.png", "day/a b.bmp", "Day/a B.png", "night/a.png"]
    records = make(tmp_path / "i", [(name, (20, 30), some(1)) for name in names])
    found = {}
    for to in ("coco", "yolo", "voc", "csv"):
        report = write_dataset({"train": records}, tmp_path / to, to, WriteSettings())  # type: ignore[arg-type]
        names_there = sorted(image.file_name for image in read_split(tmp_path / to, "train").images)
        found[to] = (report.lost.get(RENAMED, 0), names_there)
    assert found["coco"] == found["csv"] == (1, sorted(["Day/a B_2.png", "day/a b.bmp", "day/a b.png", "night/a.png"]))
    assert found["yolo"] == (2, sorted(["Day/a B_3.png", "day/a b.png", "day/a b_2.bmp", "night/a.png"]))
    assert found["voc"][0] == 3  # no spaces either
    assert found["voc"][1] == sorted(["day_a_b.png", "day_a_b_2.bmp", "Day_a_B_3.png", "night_a.png"])


def test_nothing_is_overwritten_unless_asked_and_nothing_half_written_stays(tmp_path: Path) -> None:
    data = coco(tmp_path / "in", [], {1: "x"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(SettingError, match="out exists; .*--overwrite"):
        convert(data, tmp_path / "out", "yolo")
    assert (tmp_path / "out" / "precious").exists()
    with pytest.raises(SettingError, match="in holds the images of .*train.json"):
        convert(data, data, "yolo", overwrite=True)
    (data / "images" / "2.png").write_bytes(b"no image any more")
    with pytest.raises(DataError, match=r"2\.png"):
        convert(data, tmp_path / "other", "yolo")
    Image.new("RGB", (40, 30)).save(data / "images" / "2.png")
    convert(data, tmp_path / "out", "yolo", overwrite=True)
    assert not (tmp_path / "out" / "precious").exists() and (tmp_path / "out" / "data.yaml").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_images_can_be_linked(tmp_path: Path) -> None:
    data = coco(tmp_path / "in", [], {1: "x"})
    convert(data, tmp_path / "out", "coco", hard_links=True)
    assert (tmp_path / "out" / "train" / "1.png").samefile(data / "images" / "1.png")
    convert(data, tmp_path / "copy", "coco")
    assert not (tmp_path / "copy" / "train" / "1.png").samefile(data / "images" / "1.png")


@pytest.mark.parametrize(("to", "name"), [("voc", " x"), ("csv", "x\n")])
def test_class_names_that_a_format_cannot_hold_are_refused(to: Any, name: str, tmp_path: Path) -> None:
    data = coco(tmp_path / "in", [], {1: name})
    with pytest.raises(DataError, match=f"class name .* cannot be written as {to}"):
        convert(data, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_unknown_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown to 'cocoo'; did you mean 'coco'"):
        convert(tmp_path, tmp_path / "out", "cocoo")  # type: ignore[arg-type]


# ---- split
def many(folder: Path, count: int = 60) -> Path:
    random = np.random.default_rng(0)
    # Class 1 is in a third of the images, class 2 in a tenth; every fifth image has nothing.
    boxes = [
        {"image_id": n + 1, "category_id": c, "bbox": [1, 2, 10, 10]}
        for n in range(count)
        for c in (1, 2, 3)
        if n % 5 and random.random() < (1 / 3, 1 / 10, 1)[c - 1]
    ]
    return coco(folder, boxes, {1: "often", 2: "rare", 3: "always"}, count)


def test_every_class_is_in_every_split_by_its_share(tmp_path: Path) -> None:
    data = many(tmp_path / "in")
    report = split(data, tmp_path / "out", val=0.25, test=0.25, to="coco")
    whole, parts = read_split(data, "train"), read_splits(tmp_path / "out")
    names = [image.path.read_bytes() for part in parts.values() for image in part.images]
    assert Counter(names) == Counter(image.path.read_bytes() for image in whole.images)
    assert report.splits["train"]["images"] == pytest.approx(30, abs=3)
    for label in range(3):
        counts = {name: sum((i.labels == label).any() for i in part.images) for name, part in parts.items()}
        total = sum(counts.values())
        assert total > 0
        for name, share in (("train", 0.5), ("val", 0.25), ("test", 0.25)):
            assert abs(counts[name] - share * total) <= 1, (label, counts)
    negatives = {name: sum(i.is_negative for i in part.images) for name, part in parts.items()}
    assert negatives == {"train": 6, "val": 3, "test": 3}


def test_the_seed_decides_the_splits(tmp_path: Path) -> None:
    data = many(tmp_path / "in", 20)
    found = []
    for number, seed in enumerate((0, 0, 1)):
        split(data, tmp_path / str(number), seed=seed)
        found.append([image.file_name for image in read_split(tmp_path / str(number), "val").images])
    assert found[0] == found[1] != found[2]


def test_groups_stay_together_and_splits_are_pooled(tmp_path: Path) -> None:
    records = make(tmp_path / "i", [(f"clip{n // 5}_{n}.png", (20, 30), some(1, n % 3)) for n in range(30)])
    others = make(tmp_path / "j", [(f"clip9_{n}.png", (20, 30), some(1)) for n in range(5)])
    write_dataset({"train": records, "test": others}, tmp_path / "in", "voc", WriteSettings())
    report = split(tmp_path / "in", tmp_path / "out", val=0.3, group_by=r"^(clip\d+)_")
    assert report.format == "voc" and report.notes[0] == "put together before: train, test"
    parts = read_splits(tmp_path / "out")
    groups = {name: {image.file_name.split("_")[0] for image in part.images} for name, part in parts.items()}
    assert not groups["train"] & groups["val"] and len(groups["train"] | groups["val"]) == 7
    assert sum(len(part) for part in parts.values()) == 35
    with pytest.raises(SettingError, match="group_by 'shot' finds nothing in the image name 'clip0_0.png'"):
        split(tmp_path / "in", tmp_path / "other", group_by="shot")
    with pytest.raises(SettingError, match=r"group_by '\(' is no regular expression"):
        split(tmp_path / "in", tmp_path / "other", group_by="(")


def test_too_few_images_are_an_error_and_absent_classes_a_note(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 images or groups are too few for train, val; nothing is left for val"):
        split(coco(tmp_path / "one", [], {1: "x"}, images=1), tmp_path / "out")
    data = coco(tmp_path / "in", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}], {1: "x", 2: "y"}, images=10)
    notes = split(data, tmp_path / "out").notes
    assert notes == ["class 'x' is not in val", "class 'y' is not in train, val"]


@pytest.mark.parametrize("shares", [{"val": 0.5, "test": 0.5}, {"val": 0.0, "test": 0.0}, {"val": 1.0}])
def test_shares_must_leave_something(shares: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="val"):
        split(tmp_path, tmp_path / "out", **shares)


# ---- merge
def test_classes_are_merged_by_name(tmp_path: Path) -> None:
    box = {"image_id": 1, "bbox": [1, 2, 10, 10]}
    first = coco(tmp_path / "a", [{**box, "category_id": 1}, {**box, "category_id": 2}], {1: "cat", 2: "dog"})
    second = coco(tmp_path / "b", [{**box, "category_id": 1}, {**box, "category_id": 2}], {1: "dog", 2: "emu"})
    report = merge([first, second], tmp_path / "out")
    assert report.class_names == ("cat", "dog", "emu") and report.format == "coco"
    assert report.notes == ["category id of 'dog': 1 and 2 before, now 2", "category id of 'emu': 2 before, now 3"]
    assert report.lost == {RENAMED: 2}
    records = read_split(tmp_path / "out", "train")
    assert [image.labels.tolist() for image in records.images] == [[0, 1], [], [1, 2], []]
    assert [image.file_name for image in records.images] == ["1.png", "2.png", "1_2.png", "2_2.png"]
    assert records.images[2].path.read_bytes() == (second / "images" / "1.png").read_bytes()


def test_ids_that_agree_are_kept(tmp_path: Path) -> None:
    first = coco(tmp_path / "a", [], {3: "cat", 8: "dog"})
    report = merge([first, coco(tmp_path / "b", [], {8: "dog", 90: "emu"})], tmp_path / "out")
    assert report.notes == [] and read_split(tmp_path / "out", "train").category_ids == (3, 8, 90)


def test_names_that_differ_in_case_alone_are_a_conflict(tmp_path: Path) -> None:
    first, second = coco(tmp_path / "a", [], {1: "Traffic  light"}), coco(tmp_path / "b", [], {1: "traffic light"})
    with pytest.raises(DataError, match="'Traffic  light' of .*a and 'traffic light' of .*b differ in case or spaces"):
        merge([first, second], tmp_path / "out")
    with pytest.raises(SettingError, match="two datasets or more"):
        merge([first], tmp_path / "out")


# ---- subset
def test_some_classes_are_kept(tmp_path: Path) -> None:
    data = many(tmp_path / "in")
    whole = read_split(data, "train")
    report = subset(data, tmp_path / "out", classes=("rare", "Often"))
    part = read_split(tmp_path / "out", "train")
    assert part.class_names == ("often", "rare") and part.category_ids == (1, 2)
    counts = Counter(label for image in whole.images for label in image.labels.tolist())
    assert Counter(label for image in part.images for label in image.labels.tolist()) == {0: counts[0], 1: counts[1]}
    assert not any(image.is_negative for image in part.images)
    assert report.lost == {"boxes of other classes": counts[2], "images without the classes": 60 - len(part)}
    subset(data, tmp_path / "all", classes=("rare",), keep_negatives=True)
    assert len(read_split(tmp_path / "all", "train")) == 60
    with pytest.raises(UnknownNameError, match="unknown class 'oftn'; did you mean 'often'"):
        subset(data, tmp_path / "other", classes=("oftn",))


@pytest.mark.parametrize(("choice", "count"), [({"images": 12}, 12), ({"fraction": 0.5}, 30), ({"images": 100}, 60)])
def test_a_number_of_images_is_kept_with_every_class(choice: dict[str, Any], count: int, tmp_path: Path) -> None:
    data = many(tmp_path / "in")
    report = subset(data, tmp_path / "out", **choice)
    part = read_split(tmp_path / "out", "train")
    assert len(part) == count
    assert report.lost == ({"images not chosen": 60 - count} if count < 60 else {})
    assert {label for image in part.images for label in image.labels.tolist()} == {0, 1, 2}


def test_a_subset_must_be_asked_for_in_one_way(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing says which part"):
        subset(tmp_path, tmp_path / "out")
    with pytest.raises(SettingError, match="images and fraction"):
        subset(tmp_path, tmp_path / "out", images=3, fraction=0.1)
