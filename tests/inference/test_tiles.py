"""Large images in tiles: small objects are found, each once, wherever the tiles cut them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet.boxes import pairwise_iou
from efficientdet.data.coco import read_coco
from efficientdet.data.tiling import tile
from efficientdet.detections import Detections
from efficientdet.errors import ImageError
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.images.tiles import cut
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.inference.tiles import merge_tiles, predict_in_tiles
from efficientdet.training.run import train

NAMES = ("person", "dog")
Boxes = np.ndarray[Any, np.dtype[np.float32]]


def seen(boxes: Boxes, labels: Any, view: Sequence[int], smallest: float) -> Detections:
    """What a perfect detector finds in a part of an image: everything, as far as it reaches into the part.

    Args:
        boxes: (N, 4), pixels of the image.
        labels: (N,).
        view: left, top, right, bottom of the part.
        smallest: side of what is visible of an object below which it is not found.
    """
    left, top, right, bottom = view
    shown = np.clip(boxes, [left, top, left, top], [right, bottom, right, bottom]) - [left, top, left, top]
    is_found = (shown[:, 2:] - shown[:, :2]).min(1, initial=np.inf) >= smallest
    scores = np.linspace(0.9, 0.5, len(boxes))[is_found]
    return Detections(shown[is_found], scores, np.asarray(labels)[is_found], NAMES, (bottom - top, right - left))


def merged(boxes: Boxes, labels: Any, size: tuple[int, int], chosen: PostprocessSettings, whole: float) -> Detections:
    """What is left of the findings of a perfect detector that sees nothing smaller than `whole` in the whole image."""
    assert chosen.tiles is not None
    views = [(0, 0, size[1], size[0]), *cut(size, chosen.tiles, chosen.overlap)]
    found = [seen(boxes, labels, view, whole if number == 0 else 3) for number, view in enumerate(views)]
    return merge_tiles(found, views, chosen)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Boxes, list[int], tuple[int, int], PostprocessSettings]:
    """Objects that do not touch: one in some of the cells of a grid, as small as 6 pixels or larger than a tile."""
    pitch = draw(st.sampled_from([40, 90, 200]))
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    size = (max(120, rows * pitch + draw(st.integers(0, 50))), max(120, columns * pitch + draw(st.integers(0, 50))))
    boxes, labels = [], []
    for row in range(rows):
        for column in range(columns):
            if draw(st.booleans()):
                width, height = draw(st.integers(6, pitch - 4)), draw(st.integers(6, pitch - 4))
                left, top = draw(st.integers(0, pitch - 4 - width)), draw(st.integers(0, pitch - 4 - height))
                x, y = column * pitch + left, row * pitch + top
                boxes.append([x, y, x + width, y + height])
                labels.append(draw(st.integers(0, 1)))
    tiles, overlap = draw(st.sampled_from([64, 100, 117])), draw(st.sampled_from([0.1, 0.2, 0.5]))
    chosen = PostprocessSettings(tiles=tiles, overlap=overlap, nms=draw(st.sampled_from(["hard", "soft", "wbf"])))
    return np.array(boxes, np.float32).reshape(-1, 4), labels, size, chosen


@settings(max_examples=60, deadline=None)
@given(scenes())
@example((np.zeros((0, 4), np.float32), [], (120, 120), PostprocessSettings(tiles=64, nms="wbf")))
def test_each_object_is_found_once_wherever_the_tiles_cut_it(
    scene: tuple[Boxes, list[int], tuple[int, int], PostprocessSettings],
) -> None:
    boxes, labels, size, chosen = scene
    found = merged(boxes, labels, size, chosen, whole=40)
    assert len(found) == len(boxes)
    order, truth = np.lexsort(found.boxes_xyxy.T), np.lexsort(boxes.T)
    assert found.boxes_xyxy[order] == pytest.approx(boxes[truth], abs=0.01)
    assert found.labels[order].tolist() == np.asarray(labels, int)[truth].tolist()
    assert (np.diff(found.scores) <= 0).all()


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 2**32 - 1))
def test_no_two_boxes_of_a_class_overlap_by_more_than_nms_allows(
    scene: tuple[Boxes, list[int], tuple[int, int], PostprocessSettings], seed: int
) -> None:
    boxes, labels, size, chosen = scene
    random = np.random.default_rng(seed)
    views = [(0, 0, size[1], size[0]), *cut(size, chosen.tiles or 0, chosen.overlap)]
    found = []
    for view in views:  # a poor detector: boxes off by some pixels
        one = seen(boxes, labels, view, 3)
        noise = random.normal(0, 2, one.boxes_xyxy.shape)
        found.append(
            dataclasses.replace(one, boxes_xyxy=np.sort((one.boxes_xyxy + noise).reshape(-1, 2, 2), 1).reshape(-1, 4))
        )
    hard = dataclasses.replace(chosen, nms="hard")
    result = merge_tiles(found, views, hard)
    iou = np.triu(pairwise_iou(*(2 * [torch.from_numpy(result.boxes_xyxy)])).numpy(), 1)
    same = result.labels[:, None] == result.labels[None]
    assert not (iou[same] > hard.iou_threshold + 1e-5).any()


def test_the_part_of_an_object_gives_way_to_the_whole_even_with_a_better_score() -> None:
    part = Detections([[60, 10, 100, 50]], [0.9], [0], NAMES, (100, 100))
    whole = Detections([[10, 10, 90, 50]], [0.4], [0], NAMES, (100, 100))
    nothing = Detections([], [], [], NAMES, (100, 180))
    views = [(0, 0, 180, 100), (0, 0, 100, 100), (50, 0, 150, 100), (80, 0, 180, 100)]
    found = merge_tiles(
        [nothing, part, whole, dataclasses.replace(nothing, image_size=(100, 100))],
        views,
        PostprocessSettings(tiles=100),
    )
    assert found.boxes_xyxy.tolist() == [[60, 10, 140, 50]]
    assert found.scores == pytest.approx([0.4])


def test_the_limit_holds_over_everything() -> None:
    boxes = np.array([[x, y, x + 10, y + 10] for x in range(5, 380, 20) for y in range(5, 280, 20)], np.float32)
    chosen = PostprocessSettings(tiles=100, max_detections=50)
    assert len(merged(boxes, np.zeros(len(boxes), int), (300, 400), chosen, whole=40)) == 50


@pytest.mark.parametrize("size", [(100, 100), (64, 100), (20, 30)])
def test_an_image_that_fits_into_a_tile_is_predicted_once(size: tuple[int, int]) -> None:
    seen_sizes = []

    def predict(images: Any) -> Iterator[Detections]:
        for image in images:
            seen_sizes.append(image.shape[:2])
            yield Detections([], [], [], NAMES, image.shape[:2])

    found = list(predict_in_tiles([np.zeros((*size, 3), np.uint8)], predict, PostprocessSettings(tiles=100)))
    assert seen_sizes == [size]
    assert [one.image_size for one in found if isinstance(one, Detections)] == [size]


# With a network


@pytest.fixture(scope="module")
def people() -> Detector:
    return load("people", backend="eager")


def test_an_image_that_cannot_be_read_gives_its_error_in_its_place(people: Detector, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "good.png")
    found = list(people.try_many([tmp_path / "none.jpg", tmp_path / "good.png"], tiles=64))
    assert isinstance(found[0], ImageError)
    assert isinstance(found[1], Detections)
    assert found[1].source == str(tmp_path / "good.png")
    assert found[1].image is not None and found[1].image.shape == (60, 90, 3)


def mosaic(data: Path, size: tuple[int, int], side: int) -> tuple[Image.Image, Boxes]:
    """Photographs of people side by side, shrunk to cells of a side, and the boxes of the small people in them."""
    records = [record for record in read_coco(data / "val.json").images if len(record.boxes_xyxy)]
    canvas, boxes = Image.new("RGB", (size[1], size[0])), []
    places = [(x, y) for y in range(0, size[0] - side + 1, side) for x in range(0, size[1] - side + 1, side)]
    for number, (left, top) in enumerate(places):
        record = records[number % len(records)]
        with Image.open(record.path) as image:
            scale = side / max(image.size)
            canvas.paste(image.convert("RGB").resize([max(1, round(scale * one)) for one in image.size]), (left, top))
        kept = record.boxes_xyxy[~record.is_ignored] * scale + [left, top, left, top]
        boxes.append(kept)
    return canvas, np.concatenate(boxes).astype(np.float32)


def share_found(found: Detections, boxes: Boxes) -> float:
    """Share of the boxes that a detection overlaps by at least a half."""
    iou = pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(found.boxes_xyxy))
    return float((iou.amax(1) >= 0.5).float().mean()) if len(found) else 0.0


def check_mosaic(people: Detector, data: Path, size: tuple[int, int]) -> None:
    image, boxes = mosaic(data, size, 200)
    small = boxes[(boxes[:, 3] - boxes[:, 1] < 160) & ((boxes[:, 2:] - boxes[:, :2]).min(1) >= 20)]
    assert len(small) >= 10
    whole = people.predict(image, max_detections=1000)
    tiled = people.predict(image, max_detections=1000, tiles=400, overlap=0.5)
    shares = share_found(whole, small), share_found(tiled, small)
    print(f"{size[1]}x{size[0]}: of {len(small)} small people {shares[0]:.1%} in the whole, {shares[1]:.1%} in tiles")
    assert shares[1] >= 1.5 * shares[0]
    assert shares[1] > 0.2
    iou = pairwise_iou(*(2 * [torch.from_numpy(tiled.boxes_xyxy)])).triu(1)
    assert float(iou.max()) <= 0.5 + 1e-5


def test_small_people_of_a_mosaic_are_found_in_tiles(shared_data: Path) -> None:
    check_mosaic(load("people", image_size=320), shared_data / "people", (800, 1000))


@pytest.mark.slow
def test_small_people_of_a_large_mosaic_are_found_in_tiles(people: Detector, shared_data: Path) -> None:
    check_mosaic(people, shared_data / "people", (3000, 4000))


def test_tiles_are_stored_as_other_settings_are(people: Detector) -> None:
    info = dataclasses.replace(people.info, postprocess={"tiles": 640, "overlap": 0.3})
    detector = Detector(people.model, info)
    assert (detector.postprocess.tiles, detector.postprocess.overlap) == (640, 0.3)


@pytest.mark.slow
def test_what_is_trained_on_tiles_is_evaluated_on_whole_images_with_one_ap(shapes: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is missing (efficientdet[train])")
    data = shapes.write_shapes(tmp_path / "whole", {"train": 4, "val": 2})
    tile(data, tmp_path / "tiles", size=64)
    run = train(shapes.TINY, tmp_path / "tiles", out=tmp_path / "run", **{**shapes.SETTINGS, "epochs": 1})
    detector = load(run.best)
    assert detector.postprocess.tiles == 64
    metrics = evaluate(detector, data)
    assert metrics.images == 2
    assert 0 <= metrics.ap <= 1
