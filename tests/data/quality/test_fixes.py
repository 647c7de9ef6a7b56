from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.data.coco import read_coco
from efficientdet.data.quality.check import check_splits, read_all
from efficientdet.data.quality.findings import Finding, grouped
from efficientdet.data.quality.fixes import write_fixed
from efficientdet.errors import SettingError
from efficientdet.family import find_spec
from efficientdet.images.read import read

pytest.importorskip("imagehash", reason="imagehash is missing (extra data)")
SPEC = find_spec("lite0")


def check(data: Path) -> tuple[dict[str, Any], list[Finding]]:
    reading = read_all(data)
    findings = reading.findings + check_splits(reading.splits, SPEC, 320)[0]
    return reading.splits, findings


def fix(data: Path, out: Path) -> dict[str, int]:
    splits, findings = check(data)
    return {what: count for what, count in write_fixed(splits, findings, out).items() if count}


@pytest.fixture
def broken(tmp_path: Path, write: Callable[..., Path], written: Any) -> Path:
    """A dataset with one of each fault that can be fixed."""
    folder: Path = write(
        tmp_path / "data",
        "train",
        [
            written(
                "a.png", [(1, [10, 10, 40.25, 40]), (2, [140, 10, 40, 40]), (1, [200, 10, 5, 5]), (1, [9, 9, 0, 5])]
            ),
            written("b.png", [(1, [10, 10, 40, 40]), (1, [11, 10, 40, 40]), (2, [10, 10, 40, 40])]),
            written("c.jpg", [(1, [10, 10, 40, 40])]),
            written("d.jpg", [(1, [10, 130, 40, 25])], orientation=6, states_size=False),
        ],
    )
    write(folder, "val", [written("a.png", [(1, [10, 10, 40, 40])]), written("e.png", [(2, [10, 10, 40, 40])])])
    damaged = folder / "images" / "c.jpg"
    damaged.write_bytes(damaged.read_bytes()[:1500])
    path = folder / "train.json"
    content = json.loads(path.read_text())
    content["annotations"].append({"id": 99, "image_id": 1, "category_id": 7, "bbox": [1, 2, 30, 40]})
    path.write_text(json.dumps(content))
    return folder


def test_each_fix_is_made_and_counted(broken: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    assert fix(broken, tmp_path / "fixed") == {
        "entries left out: cannot be read": 1,
        "images left out: cannot be decoded": 1,
        "images left out: in the training split too": 1,
        "boxes clipped to the image": 1,
        "boxes left out: outside the image": 1,
        "boxes left out: without an area": 1,
        "boxes left out: second on an object": 1,
        "images whose boxes are turned by EXIF": 1,
    }
    assert before == {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    train = json.loads((tmp_path / "fixed" / "train.json").read_text())
    assert [image["file_name"] for image in train["images"]] == ["a.png", "b.png", "d.jpg"]
    boxes = {one["id"]: one["bbox"] for one in train["annotations"]}
    assert boxes == {1: [10, 10, 40.25, 40], 2: [140, 10, 20, 40], 5: [10, 10, 40, 40], 7: [10, 10, 40, 40],
                     9: [5, 10, 25, 40]}  # fmt: skip
    val = json.loads((tmp_path / "fixed" / "val.json").read_text())
    assert [image["file_name"] for image in val["images"]] == ["e.png"]


def test_a_fixed_dataset_has_nothing_left_to_fix(broken: Path, tmp_path: Path) -> None:
    fix(broken, tmp_path / "fixed")
    _, findings = check(tmp_path / "fixed")
    assert [one for one in findings if one.severity == "error"] == []
    assert "box-repeated" not in grouped(findings)
    assert fix(tmp_path / "fixed", tmp_path / "again") == {}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_turned_boxes_lie_on_their_object(
    tmp_path: Path, write: Callable[..., Path], written: Any, orientation: int
) -> None:
    """A bright patch in the file's own pixels; its box, turned, is bright in the upright image."""
    folder = write(tmp_path / "data", "train", [
        written("a.png", [(1, [10, 130, 40, 25])], orientation=orientation, states_size=False),
    ])  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.new("L", (120, 160))
    image.paste(255, (10, 130, 50, 155))
    image.save(folder / "images" / "a.png", exif=exif)
    fix(folder, tmp_path / "fixed")
    record = read_coco(tmp_path / "fixed" / "train.json").images[0]
    x1, y1, x2, y2 = record.boxes_xyxy[0].astype(int)
    upright = read(record.path)
    assert upright.shape[:2] == (120, 160)
    assert upright[y1:y2, x1:x2].min() == 255 and (upright == 255).all(2).sum() == (x2 - x1) * (y2 - y1)


def test_stated_sizes_of_the_unrotated_image_are_corrected(
    tmp_path: Path, write: Callable[..., Path], written: Any
) -> None:
    folder = write(
        tmp_path / "data", "train", [written("a.png", [(1, [10, 130, 40, 25])], orientation=6), written("b.png")]
    )
    content = json.loads((folder / "train.json").read_text())
    content["images"][0] |= {"width": 120, "height": 160}
    (folder / "train.json").write_text(json.dumps(content))
    assert fix(folder, tmp_path / "fixed") == {"images whose boxes are turned by EXIF": 1}
    fixed = json.loads((tmp_path / "fixed" / "train.json").read_text())
    assert (fixed["images"][0]["width"], fixed["images"][0]["height"]) == (160, 120)
    assert fixed["annotations"][0]["bbox"] == [5, 10, 25, 40]


def test_one_file_stands_beside_the_original(tmp_path: Path, write: Callable[..., Path], written: Any) -> None:
    folder = write(tmp_path / "data", "train", [written("a.png", [(1, [140, 10, 40, 40])])])
    fix(folder / "train.json", folder / "fixed.json")
    assert read_coco(folder / "fixed.json").images[0].boxes_xyxy.tolist() == [[140, 10, 160, 50]]
    with pytest.raises(SettingError, match="exists; choose another file"):
        fix(folder / "train.json", folder / "fixed.json")
    with pytest.raises(SettingError, match="the images are not found from there.*write it to .*data"):
        fix(folder / "train.json", tmp_path / "elsewhere" / "fixed.json")


def test_one_file_is_not_enough_for_two_splits(broken: Path) -> None:
    with pytest.raises(SettingError, match=r"one file for 2 splits \(train, val\); give a folder"):
        fix(broken, broken / "fixed.json")


def test_other_formats_are_written_as_coco(shared_data: Path, tmp_path: Path) -> None:
    """VOC with 2 degenerate boxes: all others are kept, to the pixel."""
    splits, findings = check(shared_data / "cells" / "voc")
    write_fixed(splits, findings, tmp_path / "fixed")
    for split, records in splits.items():
        fixed = read_coco(tmp_path / "fixed" / f"{split}.json")
        assert fixed.class_names == records.class_names and len(fixed) <= len(records)
        kept = {record.path.name: record for record in fixed.images}
        for record in records.images:
            if record.path.name in kept:
                assert len(kept[record.path.name].boxes_xyxy) <= len(record.boxes_xyxy)
                for box in kept[record.path.name].boxes_xyxy:
                    assert np.abs(record.boxes_xyxy - box).sum(1).min() < 1e-2
