"""Boxes and labels on pictures of every size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet.detections import Detections
from efficientdet.images import draw as module
from efficientdet.images.draw import class_color, text_color

GREY = 101


def gray(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((height, width, 3), GREY, np.uint8)


def found(boxes: Any, size: tuple[int, int], scores: Any = None, labels: Any = None, names: Any = None) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(1, 0.5, count) if scores is None else scores,
        np.zeros(count, np.int64) if labels is None else labels,
        names or ("person", "dog"),
        size,
    )


def draw(image: np.ndarray[Any, np.dtype[np.uint8]], detections: Detections) -> Image.Image:
    return detections.draw(image)


def colored(image: Any, color: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.asarray((np.asarray(image) == color).all(axis=2))


def test_the_line_lies_on_the_box_and_the_rest_is_untouched() -> None:
    pixels = gray(400, 400)
    drawn = draw(pixels, found([[100, 150, 300, 350]], (400, 400)))
    line = colored(drawn, class_color(0))
    assert line[150, 100:300].all()
    assert line[350, 100:300].all()
    assert line[150:350, 100].all()
    assert line[150:350, 300].all()
    array = np.asarray(drawn)
    assert (array[160:340, 110:290] == GREY).all()  # hollow
    assert (array[:120] == GREY).all()
    assert (array[360:] == GREY).all()
    assert (pixels == GREY).all()


def test_a_label_stands_above_its_box_and_within_where_there_is_no_room() -> None:
    above = colored(draw(gray(400, 400), found([[100, 150, 300, 350]], (400, 400))), class_color(0))
    assert above[137:139, 102:130].all()
    within = colored(draw(gray(400, 400), found([[100, 0, 300, 350]], (400, 400))), class_color(0))
    assert within[2, 102:130].all()


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    boxes=st.lists(st.tuples(*[st.floats(-200, 500, width=32)] * 4), max_size=5),
    name=st.text(max_size=30),
)
def test_any_box_and_any_name_on_any_picture(size: tuple[int, int], boxes: Any, name: str) -> None:
    detections = found(boxes, size, names=(name,))
    assert draw(gray(*size), detections).size == (size[1], size[0])


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(64, 900), st.integers(1, 900)),
    boxes=st.lists(st.tuples(*[st.floats(-50, 950, width=32)] * 4), min_size=1, max_size=8),
    name=st.text(max_size=40),
)
def test_labels_lie_inside_the_picture_and_apart(size: tuple[int, int], boxes: Any, name: str) -> None:
    detections = found(boxes, size, names=(name,))
    placed: list[Any] = []
    for index in range(len(boxes)):
        box = module._inside(detections.boxes_xyxy[index], (size[1], size[0]))
        score = f"{detections.scores[index]:.0%}"
        tag = module._place_tag(" ".join(name.split()), score, 0, box, (size[1], size[0]), 3, placed)
        if tag is None:
            assert index > 0
            continue
        left, top, right, bottom = tag.rectangle
        assert 0 <= left <= right < size[1]
        assert 0 <= top < bottom < size[0]
        assert tag.padding + tag.font.getlength(tag.text) <= size[1] + tag.padding
        assert not any(module._overlap(tag.rectangle, other) for other in placed)
        placed.append(tag.rectangle)


def test_a_long_name_is_shortened_to_the_picture() -> None:
    name = "a very long name of a very rare bird"
    tag = module._place_tag(name, "100%", 0, (10, 20, 60, 90), (90, 100), 1, [])
    assert tag is not None
    assert tag.text.endswith("…")
    assert tag.text.startswith("a ver")


def test_the_highest_score_lies_on_top() -> None:
    box = [[100, 150, 300, 350]] * 2
    for labels in ([0, 1], [1, 0]):
        detections = found(box, (400, 400), scores=[0.4, 0.8], labels=labels)
        line = np.asarray(draw(gray(400, 400), detections))[350, 200]
        assert tuple(line) == class_color(labels[1])


def test_lines_and_text_grow_with_the_picture() -> None:
    def line_and_text(side: int) -> tuple[int, int]:
        box = [side // 4, side // 4, side // 4 * 3, side // 4 * 3]
        marks = colored(draw(gray(side, side), found([box], (side, side))), class_color(0))
        return int(marks[side // 2, : side // 2].sum()), int(marks[: side // 4, side // 4 + side // 50].sum())

    small, large = line_and_text(200), line_and_text(2000)
    assert small[0] == 1
    assert 7 <= large[0] <= 12
    assert large[1] > 3 * small[1] > 0


def test_an_icon_keeps_its_boxes_and_gets_no_labels() -> None:
    drawn = draw(gray(40, 60), found([[10, 20, 50, 35]], (40, 60)))
    marks = colored(drawn, class_color(0))
    assert marks.sum() == 2 * (41 + 16) - 4


def test_colors_are_stable_distinct_and_readable() -> None:
    colors = [class_color(label) for label in range(90)]
    assert colors == [class_color(label) for label in range(90)]
    assert len(set(colors)) == 90
    first = np.array(colors[:12], float)
    apart = np.abs(first[:, None] - first[None]).sum(2) + np.eye(12) * 999
    assert apart.min() > 90
    assert text_color((255, 255, 0)) == (18, 18, 18)
    assert text_color((0, 0, 90)) == (255, 255, 255)
    assert all(_contrast(color, text_color(color)) > 4 for color in colors)


def _contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    def luminance(color: tuple[int, int, int]) -> float:
        share = np.array(color) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("image", [np.zeros((40, 30, 3), np.uint8), np.zeros((30, 40, 3), np.float32)])
def test_another_picture_is_refused(image: Any) -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\)"):
        draw(image, found([[1, 2, 3, 4]], (30, 40)))
