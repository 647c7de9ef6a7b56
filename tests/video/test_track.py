"""Ids of tracks: they stay with their objects, also past noise; and tracks as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientdet.detections import Detections
from efficientdet.errors import MissingExtraError
from efficientdet.video.track import Tracker, mot_lines

pytest.importorskip("trackers", reason="trackers is missing (efficientdet[video])")
KINDS = ["bytetrack", "sort"]


def found(boxes: Any, frame: int, scores: Any = None, labels: Any = None) -> Detections:
    count = len(boxes)
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.full(count, 0.9) if scores is None else scores,
        np.zeros(count, np.int64) if labels is None else labels,
        ("car", "person"),
        (432, 768),
        frame=frame,
        time=frame / 12.5,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_two_objects_that_pass_each_other_keep_their_ids(kind: str) -> None:
    tracker = Tracker(kind, 0.3, 12.5)
    ids = []
    for frame in range(30):
        left, right = 20 + 20 * frame, 600 - 20 * frame
        order = slice(None, None, -1 if frame % 2 else 1)  # the detector gives them in any order
        boxes = [[left, 100, left + 60, 160], [right, 200, right + 60, 260]][order]
        ids.append(tracker.update(found(boxes, frame)).track_ids[order].tolist())
    assert ids[5:] == [ids[5]] * 25
    assert sorted(ids[5]) == [1, 2]
    assert max(map(max, ids)) == 2


def test_objects_of_two_classes_are_never_one_track() -> None:
    tracker = Tracker("bytetrack", 0.3)
    for frame in range(6):
        tracked = tracker.update(found([[10, 10, 90, 90]], frame, labels=[frame // 3]))
    assert tracked.track_ids.tolist() == [2]


def test_a_low_score_continues_a_track_and_begins_none() -> None:
    tracker = Tracker("bytetrack", 0.5, 12.5)
    for frame in range(8):
        boxes = [[100, 100, 180, 180], [400, 100, 480, 180]]
        tracked = tracker.update(found(boxes, frame, scores=[0.9 if frame < 4 else 0.2, 0.2]))
    assert tracked.track_ids.tolist() == [1]
    assert tracked.boxes_xyxy.tolist() == [boxes[0]]


def test_an_empty_frame_has_no_tracks_and_ends_none() -> None:
    tracker = Tracker("sort", 0.3, 12.5)
    for frame in range(12):
        tracked = tracker.update(found([] if frame == 6 else [[100, 100, 180, 180]], frame))
        assert len(tracked) == (frame != 6)
    assert tracked.track_ids.tolist() == [1]


def test_tracks_as_text() -> None:
    detections = found([[10, 20, 30.5, 60], [1, 2, 3, 4]], 4, scores=[0.5, 0.25])
    tracked = Tracker("bytetrack", 0.3).update(detections)
    assert list(mot_lines(tracked)) == []
    with_ids = type(tracked)(**{**vars(detections), "track_ids": [7, 0]})
    assert list(mot_lines(with_ids)) == ["5,7,10.00,20.00,20.50,40.00,0.5000,-1,-1,-1\n"]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efficientdet\[video\]'"):
        Tracker("sort", 0.3)


# The car clip of the shared data. No bundled detector knows cars, so the boxes are annotations: what differs from the
# empty road, in 377 frames, looked through by eye; the cars of frames 203 to 213, which touch, are interpolated.
CARS = np.loadtxt(Path(__file__).with_name("cars.csv"), np.int64, delimiter=",", skiprows=1)


def poor_detections(frame: int, random: np.random.Generator) -> Detections:
    """A frame's cars as a detector gives them: one of eight missed, boxes off by a twentieth, scores of all kinds."""
    boxes = CARS[CARS[:, 0] == frame, 2:].astype(np.float64)
    boxes = boxes[random.random(len(boxes)) > 1 / 8]
    boxes += random.normal(0, 0.05, boxes.shape) * (boxes[:, 2:] - boxes[:, :2]).mean(1, keepdims=True)
    if random.random() < 0.1:  # something that is no car
        left, top = random.integers(0, 600), random.integers(0, 300)
        boxes = np.concatenate([boxes, [[left, top, left + 90, top + 90]]])
    return found(boxes, frame, scores=random.uniform(0.15, 0.95, len(boxes)))


def switches_of(tracked: list[Detections]) -> tuple[int, int]:
    """How often the id of a car changes (Bernardin and Stiefelhagen 2008), and how many boxes of cars have an id."""
    ids: dict[int, int] = {}
    switches = count = 0
    for detections in tracked:
        for _, car, *box in CARS[CARS[:, 0] == detections.frame].tolist():
            iou = np.array([overlap(box, other) for other in detections.boxes_xyxy.tolist()] or [0.0])
            if iou.max() < 0.5 or detections.track_ids is None or not detections.track_ids[iou.argmax()]:
                continue
            own = int(detections.track_ids[iou.argmax()])
            switches += ids.get(car, own) != own
            ids[car], count = own, count + 1
    return switches, count


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    width, height = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize(("kind", "most", "fewest"), [("bytetrack", 1, 130), ("sort", 2, 120)])
def test_cars_keep_their_ids_past_a_poor_detector(kind: str, most: int, fewest: int) -> None:
    for seed in range(3):
        random, tracker = np.random.default_rng(seed), Tracker(kind, 0.3, 12.5)
        tracked = [tracker.update(poor_detections(frame, random)) for frame in range(377)]
        switches, count = switches_of(tracked)
        print(f"{kind}, seed {seed}: {switches} id switches in {count} of {len(CARS)} boxes of 4 cars")
        assert switches <= most
        assert count >= fewest


@pytest.mark.parametrize("kind", KINDS)
def test_cars_keep_their_ids_with_a_perfect_detector(kind: str) -> None:
    tracker = Tracker(kind, 0.3, 12.5)
    tracked = [tracker.update(found(CARS[CARS[:, 0] == frame, 2:], frame)) for frame in range(377)]
    assert switches_of(tracked)[0] == 0
    assert max(int(one.track_ids.max(initial=0)) for one in tracked) == 4
