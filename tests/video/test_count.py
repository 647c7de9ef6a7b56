"""Lines that tracks cross, and zones that objects are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.detections import Detections
from efficientdet.errors import SettingError
from efficientdet.video.count import Counters, parse_line, read_zones

DOOR = [(0.0, 0.0), (50.0, 0.0), (50.0, 100.0), (0.0, 100.0)]


def found(boxes: Any, track_ids: Any = None) -> Detections:
    count = len(boxes)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.ones(count), np.zeros(count, int), ("person",), (100, 200), track_ids=track_ids)


def box_at(x: float, y: float) -> list[float]:
    return [x - 5, y - 10, x + 5, y]


def test_a_line_counts_each_track_once_in_its_direction() -> None:
    pytest.importorskip("supervision")
    counters = Counters(lines=[(100, 0, 100, 100)])
    for step in range(20):  # one to the right, one to the left, one without a track yet
        boxes = [box_at(50 + 5 * step, 40), box_at(150 - 5 * step, 80), box_at(50 + 5 * step, 60)]
        counts = counters.update(found(boxes, [1, 2, 0]))
    assert sorted(counts["lines"][0].values()) == [1, 1]
    for step in range(20):
        counts = counters.update(found([box_at(50 + 5 * step, 40)], [7]))
    rightwards = {way for way, count in counts["lines"][0].items() if count == 2}
    assert rightwards == {"in"}  # from the right of one who looks along the line to the left


def test_a_zone_counts_what_stands_in_it() -> None:
    pytest.importorskip("supervision")
    counters = Counters(zones={"door": DOOR})
    assert counters.update(found([box_at(25, 50), box_at(60, 50), box_at(30, 90)]))["zones"] == {"door": 2}
    assert counters.update(found([]))["zones"] == {"door": 0}


def test_lines_and_zones_are_drawn_with_their_counts() -> None:
    pytest.importorskip("supervision")
    counters = Counters([(100, 20, 180, 20)], {"door": DOOR})
    image = Image.new("RGB", (200, 100))
    counters.draw(image, counters.update(found([], [])))
    pixels = np.asarray(image)
    assert (pixels[20, 105:175] == 255).all()
    assert (pixels[5:95, 50] == 255).all()
    before = pixels.copy()
    counters.draw(image, {"lines": [{"in": 8, "out": 8}], "zones": {"door": 8}})
    assert (np.asarray(image) != before).any()


def test_a_line_needs_tracks() -> None:
    pytest.importorskip("supervision")
    with pytest.raises(SettingError, match="--track"):
        Counters([(0, 0, 1, 1)]).update(found([]))


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "5,5,5,5", "0,0,inf,1", "nan,0,1,1"])
def test_what_is_no_line_is_refused(text: str) -> None:
    assert parse_line("0,1.5,20,30") == (0, 1.5, 20, 30)
    with pytest.raises(SettingError, match="write its two ends in pixels"):
        parse_line(text)


def test_zones_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "zones.json"
    path.write_text('{"door": [[0, 0], [50, 0], [50, 100], [0, 100]]}')
    assert read_zones(path) == {"door": DOOR}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a": 3}',
        '{"a": [[1, 2], [3, 4]]}',
        '{"a": [[1, 2, 3]]}',
        '{"a": [["x", 1]]}',
        '{"a": [[1,2],[3,4],[5,NaN]]}',
    ],
)
def test_what_is_no_zone_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "zones.json").write_text(text)
    with pytest.raises(SettingError, match="zones.json: "):
        read_zones(tmp_path / "zones.json")


def test_a_missing_file_of_zones_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="zones.json: no zones in it.*No such file"):
        read_zones(tmp_path / "zones.json")
