"""Counting tracked objects that cross lines, and objects within zones, by supervision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efficientdet.detections import Detections
from efficientdet.errors import SettingError, require
from efficientdet.images.draw import draw_outline
from efficientdet.text import printable

Point = tuple[float, float]


def parse_line(text: str) -> tuple[float, ...]:
    """`x1,y1,x2,y2` in pixels as numbers.

    Raises:
        SettingError: it is not four numbers, or both ends are one point.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4 or not np.isfinite(numbers).all() or numbers[:2] == numbers[2:]:
        raise SettingError(f"line '{printable(text)}': write its two ends in pixels, such as 0,240,640,240")
    return numbers


def read_zones(path: Path) -> dict[str, list[Point]]:
    """Zones from a JSON file: `{"door": [[0, 0], [100, 0], [100, 200]]}`, each with its corners in pixels.

    Raises:
        SettingError: the file cannot be read, or a zone is not a list of at least three points; names it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        zones = {str(name): [(float(x), float(y)) for x, y in corners] for name, corners in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingError(
            f'{path}: no zones in it, such as {{"door": [[0, 0], [90, 0], [90, 90]]}} ({error})'
        ) from error
    for name, corners in zones.items():
        if len(corners) < 3 or not np.isfinite(corners).all():
            raise SettingError(f"{path}: zone '{printable(name)}' has {len(corners)} points; it needs at least 3")
    return zones


class Counters:
    """Lines and zones of a video, and what has been counted at them."""

    def __init__(
        self, lines: Sequence[Sequence[float]] = (), zones: Mapping[str, Sequence[Point]] | None = None
    ) -> None:
        """Begin to count.

        Args:
            lines: (x1, y1, x2, y2) of each, in pixels. A track crosses one when the whole box has; seen along the line
                from its first end, `in` is from right to left.
            zones: corners of each, in pixels, by name. An object is within one when the middle of its lower edge is.

        Raises:
            MissingExtraError: supervision is not installed.
        """
        library = require("supervision", "video")
        self.lines, self.zones = [tuple(line) for line in lines], dict(zones or {})
        self._lines = [library.LineZone(library.Point(*line[:2]), library.Point(*line[2:])) for line in self.lines]
        self._zones = {
            name: library.PolygonZone(np.round(corners).astype(np.int64)) for name, corners in self.zones.items()
        }

    def update(self, detections: Detections) -> dict[str, Any]:
        """Count a frame's detections.

        Returns:
            `lines`: what has crossed each so far, in and out; `zones`: how many are within each in this frame.

        Raises:
            SettingError: there are lines, and the detections have no tracks.
        """
        if self._lines and detections.track_ids is None:
            raise SettingError("a line counts tracks; choose a tracker: track (--track) bytetrack or sort")
        tracked = detections if detections.track_ids is None else detections[detections.track_ids > 0]
        found, tracks = detections.to_supervision(), tracked.to_supervision()
        for line in self._lines:
            line.trigger(tracks)
        return {
            "lines": [{"in": line.in_count, "out": line.out_count} for line in self._lines],
            "zones": {name: int(zone.trigger(found).sum()) for name, zone in self._zones.items()},
        }

    def draw(self, image: Image.Image, counts: dict[str, Any]) -> None:
        """Draw lines and zones, with what `update` returned, into an image itself."""
        for number, (line, count) in enumerate(zip(self.lines, counts["lines"], strict=True), start=1):
            draw_outline(
                image,
                [(line[0], line[1]), (line[2], line[3])],
                f"line {number}:",
                f"{count['in']} in, {count['out']} out",
                False,
            )
        for name, corners in self.zones.items():
            draw_outline(image, corners, f"{name}:", str(counts["zones"][name]), True)
