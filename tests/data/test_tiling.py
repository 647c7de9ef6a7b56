"""Tiles: every pixel is in one, boxes follow, and each tile leads back to its image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientdet.data.read_split import read_split
from efficientdet.data.tiling import BOXES_CUT, PARTS_IGNORED, tile, tile_side
from efficientdet.errors import DataError, SettingError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One image of noise, 150 x 100, and a small one; boxes at known places."""
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "big.png")
    Image.fromarray(pixels[:40, :50]).save(folder / "images" / "small.png")
    boxes = [(1, [10, 10, 20, 20], 0), (1, [80, 40, 40, 20], 0), (1, [92, 0, 40, 10], 1), (2, [0, 0, 50, 40], 0)]
    content = {
        "images": [{"id": 1, "file_name": "big.png"}, {"id": 2, "file_name": "small.png"}],
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": 4, "bbox": bbox, "iscrowd": crowd}
            for number, (image_id, bbox, crowd) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 4, "name": "x"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def test_tiles_lead_back_to_their_image(data: Path, tmp_path: Path) -> None:
    report = tile(data, tmp_path / "out", size=100, overlap=0.5, smallest_share=0.3)
    records = read_split(tmp_path / "out", "train")
    assert [image.file_name for image in records.images] == ["big_y0_x0.png", "big_y0_x50.png", "small.png"]
    assert records.category_ids == (4,)
    places = json.loads((tmp_path / "out" / "tiles.json").read_text())
    assert places["train/big_y0_x50.png"] == {
        "image": "big.png", "image_id": 1, "x": 50, "y": 0, "width": 100, "height": 100,
    }  # fmt: skip
    whole = read_split(data, "train")
    originals = {image.file_name: np.asarray(Image.open(image.path)) for image in whole.images}
    for image in records.images:
        place = places[f"train/{image.file_name}"]
        rows, columns = slice(place["y"], place["y"] + place["height"]), slice(place["x"], place["x"] + place["width"])
        np.testing.assert_array_equal(np.asarray(Image.open(image.path)), originals[place["image"]][rows, columns])
    assert report.splits["train"]["images"] == 3


def test_boxes_are_cut_and_small_parts_are_ignored(data: Path, tmp_path: Path) -> None:
    report = tile(data, tmp_path / "out", size=100, overlap=0.5, smallest_share=0.6)
    left, right, small = read_split(tmp_path / "out", "train").images
    # Half of the second box is in the left tile: too little to train on. The crowd stays one in both.
    assert left.boxes_xyxy.tolist() == [[10, 10, 30, 30], [80, 40, 100, 60], [92, 0, 100, 10]]
    assert left.is_ignored.tolist() == [False, True, True]
    assert right.boxes_xyxy.tolist() == [[30, 40, 70, 60], [42, 0, 82, 10]]
    assert right.is_ignored.tolist() == [False, True]
    assert small.boxes_xyxy.tolist() == [[0, 0, 50, 40]]
    assert report.lost == {PARTS_IGNORED: 1}
    cut = tile(data, tmp_path / "half", size=100, overlap=0.5, smallest_share=0.5)
    assert cut.lost == {BOXES_CUT: 1}
    assert read_split(tmp_path / "half", "train").images[0].is_ignored.tolist() == [False, False, True]


def test_jpegs_stay_jpegs_and_nothing_stays_after_an_error(tmp_path: Path, data: Path) -> None:
    with Image.open(data / "images" / "big.png") as image:
        image.save(data / "images" / "big.jpg")
    text = (data / "train.json").read_text().replace("big.png", "big.jpg")
    (data / "train.json").write_text(text)
    tile(data, tmp_path / "out", size=100, to="yolo")
    names = sorted(path.name for path in (tmp_path / "out" / "images" / "train").iterdir())
    assert names == ["big_y0_x0.jpg", "big_y0_x50.jpg", "small.png"]
    with pytest.raises(SettingError, match="out exists"):
        tile(data, tmp_path / "out", size=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_dataset_knows_the_side_of_its_tiles(data: Path, tmp_path: Path) -> None:
    assert tile_side(data) is None
    tile(data, tmp_path / "tiles", size=64)
    assert tile_side(tmp_path / "tiles") == 64
    (tmp_path / "tiles" / "tiles.json").write_text("[]")
    with pytest.raises(DataError, match="tiles.json: damaged"):
        tile_side(tmp_path / "tiles")
