"""Boxes and labels on a picture, sized to it, so that they read well on an icon and on a poster."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from efficientdet.detections import Detections

Colour: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom pixel, both included
Font: TypeAlias = ImageFont.FreeTypeFont

# Kept apart in hue and in lightness, and vivid on photographs; the first ones are what most pictures show.
_PALETTE: tuple[Colour, ...] = (
    (220, 20, 76),  # raspberry
    (0, 194, 168),  # teal
    (255, 176, 0),  # amber
    (58, 134, 255),  # blue
    (163, 230, 53),  # lime
    (199, 80, 255),  # violet
    (250, 98, 20),  # orange
    (0, 209, 255),  # cyan
    (255, 110, 199),  # pink
    (20, 125, 60),  # green
    (255, 226, 77),  # yellow
    (98, 72, 230),  # indigo
)
_LOWEST_WITH_LABELS = 64  # pixels; on a lower picture a label hides more than it tells
_GOLDEN_RATIO = 0.618033988749895


def class_colour(label: int) -> Colour:
    """The colour of a class: always the same for the same label, and another for its neighbours.

    Args:
        label: 0-based.

    Returns:
        (red, green, blue), 0..255.
    """
    if label < len(_PALETTE):
        return _PALETTE[label]
    hue = (label * _GOLDEN_RATIO) % 1.0  # steps of the golden ratio never come close to an earlier one soon
    lightness = (0.45, 0.6, 0.72)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Near-black or white, whichever contrasts more with the background (WCAG 2 relative luminance)."""
    shares = [value / 255 for value in background]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (18, 18, 18) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


@dataclass(frozen=True)
class _Tag:
    """A label as it will be painted: where, in what size, on what colour."""

    rectangle: Rectangle
    text: str
    font: Font
    padding: int
    colour: Colour


def draw(image: NDArray[np.uint8], detections: Detections) -> Image.Image:
    """The picture with the detections as boxes with labels; the picture given is left as it is.

    Args:
        image: (H, W, 3) uint8 RGB, the picture that the detections belong to.
        detections: any number; the highest score is drawn last, on top. In a crowd, a label that would lie
            on one of a better score is left out, and on pictures lower than 64 pixels all are.

    Returns:
        A new RGB image of the same size.

    Raises:
        ValueError: `image` is not (H, W, 3) uint8 of the detections' image_size.
    """
    if image.dtype != np.uint8 or image.shape != (*detections.image_size, 3):
        expected = f"(H, W, 3) uint8 of image_size {detections.image_size}"
        raise ValueError(f"image must be {expected}, got {image.shape} {image.dtype}")
    canvas = Image.fromarray(np.array(image))
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(_measure(canvas.size) / 220))
    weakest_first = np.argsort(detections.scores, kind="stable")
    for index in weakest_first:
        box = _inside(detections.boxes_xyxy[index], canvas.size)
        _draw_box(pen, box, class_colour(int(detections.labels[index])), line)
    if canvas.height < _LOWEST_WITH_LABELS:
        return canvas
    tags: list[_Tag] = []
    for index in weakest_first[::-1]:  # the best score chooses its place first ...
        tag = _place_tag(detections, int(index), canvas.size, line, [tag.rectangle for tag in tags])
        tags += [tag] if tag else []
    for tag in reversed(tags):  # ... and is painted last; and all after the boxes: no line crosses a label
        _draw_tag(pen, tag)
    return canvas


def _measure(size: tuple[int, int]) -> float:
    """The side of a square as large as the picture, or less in a narrow strip, in pixels."""
    return float(min((size[0] * size[1]) ** 0.5, 3 * min(size)))


def _inside(box: NDArray[np.float32], size: tuple[int, int]) -> Rectangle:
    """Left, top, right, bottom of the outermost pixels to paint, in order and inside the picture."""
    left, right = sorted(round(min(max(float(x), 0.0), size[0] - 1.0)) for x in (box[0], box[2]))
    top, bottom = sorted(round(min(max(float(y), 0.0), size[1] - 1.0)) for y in (box[1], box[3]))
    return left, top, right, bottom


def _draw_box(pen: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int) -> None:
    left, top, right, bottom = box
    line = max(1, min(line, (right - left) // 4, (bottom - top) // 4))  # a tiny box stays hollow
    if line > 2:  # a dark edge, so that the line shows on a background of its own colour
        edge = max(1, line // 5)
        shade = (colour[0] // 4, colour[1] // 4, colour[2] // 4)
        around = (left - edge, top - edge, right + edge, bottom + edge)
        pen.rectangle(around, outline=shade, width=line + 2 * edge)
    pen.rectangle(box, outline=colour, width=line)


def _place_tag(
    detections: Detections, index: int, size: tuple[int, int], line: int, taken: Sequence[Rectangle]
) -> _Tag | None:
    """Choose a label's words, size and place, in the picture and off those placed before; None if none is."""
    box = _inside(detections.boxes_xyxy[index], size)
    label = int(detections.labels[index])
    name = " ".join(detections.class_names[label].split())
    text, font = _fitting_text(name, f"{detections.scores[index]:.0%}", box, size)
    padding = max(2, round(font.size / 4))
    across = min(round(font.getlength(text)) + 2 * padding, size[0])
    down = _height_of_capitals(font) + 2 * padding
    left = max(min(box[0] - line // 4, size[0] - across), 0)
    # Above the box, within it at the top, below it, within it at the bottom.
    heights = (box[1] - down, box[1], box[3] + 1, box[3] + 1 - down)
    places = [(left, y, left + across - 1, y + down - 1) for y in heights if 0 <= y <= size[1] - down]
    for place in places:
        if not any(_overlap(place, other) for other in taken):
            return _Tag(place, text, font, padding, class_colour(label))
    return None


def _fitting_text(name: str, score: str, box: Rectangle, size: tuple[int, int]) -> tuple[str, Font]:
    """Words and font: smaller on a small box, fewer in a small picture, none wider than the picture."""
    largest = max(9, round(_measure(size) / 34))
    smallest = max(9, round(largest * 0.65))
    text = f"{name} {score}"
    length = _font(largest).getlength(text) + largest / 2
    fitting = largest * max(box[2] - box[0], 1) / length
    points = round(min(max(fitting, smallest), largest))
    while points > 8 and _font(points).getlength(text) + points / 2 > size[0]:
        points -= 1
    font, room = _font(points), size[0] - points / 2
    for words in (text, name):
        if font.getlength(words) <= room:
            return words, font
    while name and font.getlength(name + "…") > room:
        name = name[:-1]
    return (name + "…" if name else ""), font


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _draw_tag(pen: ImageDraw.ImageDraw, tag: _Tag) -> None:
    left, top, right, bottom = tag.rectangle
    pen.rounded_rectangle(tag.rectangle, radius=min(tag.padding, (bottom - top) // 3), fill=tag.colour)
    baseline = (left + tag.padding, top + tag.padding + _height_of_capitals(tag.font))
    pen.text(baseline, tag.text, font=tag.font, fill=text_colour(tag.colour), anchor="ls")


@functools.lru_cache(maxsize=64)
def _font(points: int) -> Font:
    return cast("Font", ImageFont.load_default(points))  # an ImageFont only where Pillow lacks FreeType


def _height_of_capitals(font: Font) -> int:
    return round(font.size * 0.7)
