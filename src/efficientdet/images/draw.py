"""Boxes and labels drawn on an image, sized to it, so that they read well on an icon and on a poster."""

from __future__ import annotations

import colorsys
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from efficientdet.images.convert import RgbImage
from efficientdet.text import printable

Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom pixel, both included
Font: TypeAlias = ImageFont.FreeTypeFont

# Kept apart in hue and in lightness, and vivid on photographs; the first ones are what most images show.
_PALETTE: tuple[Color, ...] = (
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
_LOWEST_WITH_LABELS = 64  # pixels; on a lower image a label hides more than it tells
# Characters of a class name; to measure more takes long, and no image has room for them.
LONGEST_NAME = 80
_GOLDEN_RATIO = 0.618033988749895


# Of a thumbnail: longest side in pixels, and the JPEG quality.
LONGEST_SIDE, QUALITY = 420, 78
# A small box is shown with this many times its size around it.
CONTEXT = 5.0
SMALLEST_WINDOW = 64.0
Corners = tuple[float, float, float, float]


def class_color(label: int) -> Color:
    """The color of a class: always the same for the same label, and another for its neighbors.

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


def text_color(background: Color) -> Color:
    """Near-black or white, whichever contrasts more with the background (WCAG 2 relative luminance)."""
    shares = [value / 255 for value in background]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (18, 18, 18) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


@dataclass(frozen=True)
class _Tag:
    """A label as it will be painted: where, in what size, on what color."""

    rectangle: Rectangle
    text: str
    font: Font
    padding: int
    color: Color


def draw_boxes(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    track_ids: NDArray[np.int64] | None = None,
) -> Image.Image:
    """A copy of the image with boxes, class names and scores drawn on it.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) float32, pixels of the image.
        scores: (N,) float32. The highest score is drawn last, on top. Where labels would overlap, the one with the
            better score stays; on images lower than 64 pixels all labels are left out.
        labels: (N,) int64, indices into `class_names`.
        class_names: one name a label.
        track_ids: (N,) int64, ids of the objects, 0 for none: shown after the name, and a color each instead of one a
            class. None without tracking.

    Returns:
        A new RGB image of the same size.

    Raises:
        ValueError: `image` is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    canvas = Image.fromarray(np.array(image))
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(_measure(canvas.size) / 220))
    weakest_first = np.argsort(scores, kind="stable")
    colors = [class_color(int(number)) for number in (labels if track_ids is None else track_ids)]
    for index in weakest_first:
        box = _inside(boxes_xyxy[index], canvas.size)
        _draw_box(pen, box, colors[index], line)
    if canvas.height < _LOWEST_WITH_LABELS:
        return canvas
    tags: list[_Tag] = []
    for index in weakest_first[::-1]:  # the best score chooses its place first ...
        name = printable(" ".join(class_names[int(labels[index])].split()), LONGEST_NAME)
        name += f" {track_ids[index]}" if track_ids is not None and track_ids[index] else ""
        box = _inside(boxes_xyxy[index], canvas.size)
        taken = [tag.rectangle for tag in tags]
        tag = _place_tag(name, f"{scores[index]:.0%}", colors[index], box, canvas.size, line, taken)
        tags += [tag] if tag else []
    for tag in reversed(tags):  # ... and is painted last; and all after the boxes: no line crosses a label
        _draw_tag(pen, tag)
    return canvas


def draw_outline(
    image: Image.Image, points: Sequence[tuple[float, float]], name: str, value: str, is_closed: bool
) -> None:
    """Draw a line or a polygon into an image, in white, with a name and a value beside it.

    Args:
        image: RGB; it is changed.
        points: in pixels, at least two.
        name: what it is.
        value: what is said of it.
        is_closed: whether the last point is joined with the first.
    """
    pen, white = ImageDraw.Draw(image), (255, 255, 255)
    width = max(1, round(_measure(image.size) / 220))
    pen.line([*points, points[0]] if is_closed else list(points), fill=white, width=width)
    (left, top), (_, bottom) = np.min(points, axis=0), np.max(points, axis=0)
    around = np.array([left, top, image.width, bottom], np.float32)  # its words may be wider than it
    tag = _place_tag(printable(name, LONGEST_NAME), value, white, _inside(around, image.size), image.size, width, [])
    if tag is not None:
        _draw_tag(pen, tag)


def _measure(size: tuple[int, int]) -> float:
    """The side of a square as large as the image, or less in a narrow strip, in pixels."""
    return float(min((size[0] * size[1]) ** 0.5, 3 * min(size)))


def _inside(box: NDArray[np.float32], size: tuple[int, int]) -> Rectangle:
    """Left, top, right, bottom of the outermost pixels to paint, in order and inside the image."""
    left, right = sorted(round(min(max(float(x), 0.0), size[0] - 1.0)) for x in (box[0], box[2]))
    top, bottom = sorted(round(min(max(float(y), 0.0), size[1] - 1.0)) for y in (box[1], box[3]))
    return left, top, right, bottom


def _draw_box(pen: ImageDraw.ImageDraw, box: Rectangle, color: Color, line: int) -> None:
    left, top, right, bottom = box
    line = max(1, min(line, (right - left) // 4, (bottom - top) // 4))  # a tiny box stays hollow
    if line > 2:  # a dark edge, so that the line shows on a background of its own color
        edge = max(1, line // 5)
        shade = (color[0] // 4, color[1] // 4, color[2] // 4)
        around = (left - edge, top - edge, right + edge, bottom + edge)
        pen.rectangle(around, outline=shade, width=line + 2 * edge)
    pen.rectangle(box, outline=color, width=line)


def _place_tag(
    name: str,
    score: str,
    color: Color,
    box: Rectangle,
    size: tuple[int, int],
    line: int,
    taken: Sequence[Rectangle],
) -> _Tag | None:
    """Choose a label's words, size and place, in the image and off those placed before; None if none is."""
    text, font = _fitting_text(name, score, box, size)
    padding = max(2, round(font.size / 4))
    across = min(round(font.getlength(text)) + 2 * padding, size[0])
    down = _height_of_capitals(font) + 2 * padding
    left = max(min(box[0] - line // 4, size[0] - across), 0)
    # Above the box, within it at the top, below it, within it at the bottom.
    heights = (box[1] - down, box[1], box[3] + 1, box[3] + 1 - down)
    places = [(left, y, left + across - 1, y + down - 1) for y in heights if 0 <= y <= size[1] - down]
    for place in places:
        if not any(_overlap(place, other) for other in taken):
            return _Tag(place, text, font, padding, color)
    return None


def _fitting_text(name: str, score: str, box: Rectangle, size: tuple[int, int]) -> tuple[str, Font]:
    """Words and font: smaller on a small box, fewer in a small image, none wider than the image."""
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
    pen.rounded_rectangle(tag.rectangle, radius=min(tag.padding, (bottom - top) // 3), fill=tag.color)
    baseline = (left + tag.padding, top + tag.padding + _height_of_capitals(tag.font))
    pen.text(baseline, tag.text, font=tag.font, fill=text_color(tag.color), anchor="ls")


@functools.lru_cache(maxsize=64)
def _font(points: int) -> Font:
    return cast("Font", ImageFont.load_default(points))  # an ImageFont only where Pillow lacks FreeType


def _height_of_capitals(font: Font) -> int:
    return round(font.size * 0.7)


def thumbnail(image: RgbImage, boxes_xyxy: Sequence[Sequence[float]] = ()) -> tuple[bytes, Corners]:
    """A small JPEG of an image, or of what is around some boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: xyxy pixels of the image; small ones are shown from near.

    Returns:
        The encoded image, and what it shows: left, top, right, bottom in pixels of the original.
    """
    window = window_around(boxes_xyxy, image.shape[1], image.shape[0])
    return jpeg(small(Image.fromarray(image).crop(window))), window


def jpeg(image: Image.Image) -> bytes:
    """The encoded image."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def small(image: Image.Image) -> Image.Image:
    """The image, reduced to the longest side of a thumbnail."""
    scale = min(1.0, LONGEST_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image


def window_around(boxes: Sequence[Sequence[float]], width: int, height: int) -> Corners:
    """The part of an image to show: all of it, or what is around small boxes; whole pixels."""
    whole = (0.0, 0.0, float(width), float(height))
    inside = [box for box in boxes if box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0]
    if not inside or len(inside) < len(boxes):
        return whole
    left, top = min(box[0] for box in inside), min(box[1] for box in inside)
    right, bottom = max(box[2] for box in inside), max(box[3] for box in inside)
    side = max(CONTEXT * max(right - left, bottom - top), SMALLEST_WINDOW)
    if side >= min(width, height):
        return whole
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    x, y = min(max(x, 0.0), width - side), min(max(y, 0.0), height - side)
    return float(int(x)), float(int(y)), float(int(x + side)), float(int(y + side))
