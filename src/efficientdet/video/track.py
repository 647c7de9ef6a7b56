"""Ids that stay with objects through a video, by the trackers of Roboflow's `trackers`; and tracks as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from efficientdet.detections import Detections
from efficientdet.errors import require

# ByteTrack also follows its tracks through detections with lower scores than those that begin one: this share of them.
LOW_SHARE = 0.5
Threshold: TypeAlias = "float | tuple[float, ...]"


def lowest_score(kind: str | None, score_threshold: Threshold) -> Threshold:
    """The score, or that of each class, from which a tracker is given detections."""
    if kind != "bytetrack":
        return score_threshold
    if isinstance(score_threshold, tuple):
        return tuple(one * LOW_SHARE for one in score_threshold)
    return score_threshold * LOW_SHARE


class Tracker:
    """Gives ids to the detections of one video, frame by frame. Objects of different classes are never one track."""

    def __init__(self, kind: str, score_threshold: Threshold, frame_rate: float | None = None) -> None:
        """Begin without tracks.

        Args:
            kind: `bytetrack` or `sort`.
            score_threshold: score from which a detection may begin a track; one for all classes, or one for each.
            frame_rate: frames per second that will come, by which a lost track is kept for a second; None for 30.

        Raises:
            MissingExtraError: trackers is not installed.
        """
        library = require("trackers", "video")
        self._kind, self._threshold, self._frame_rate = kind, score_threshold, frame_rate or 30.0
        self._class = {"bytetrack": library.ByteTrackTracker, "sort": library.SORTTracker}[kind]
        self._by_label: dict[int, Any] = {}
        self._ids: dict[tuple[int, int], int] = {}

    def _of(self, label: int) -> Any:
        """The library's tracker of a class."""
        if label not in self._by_label:
            threshold = self._threshold[label] if isinstance(self._threshold, tuple) else self._threshold
            high = {"high_conf_det_threshold": threshold} if self._kind == "bytetrack" else {}
            self._by_label[label] = self._class(
                frame_rate=self._frame_rate, track_activation_threshold=threshold, **high
            )
        return self._by_label[label]

    def update(self, detections: Detections) -> Detections:
        """The detections of the next frame with `track_ids`: from 1, or 0 for those without a track.

        Those with a score below the threshold are dropped unless they continue a track.
        """
        tracks = np.zeros(len(detections), np.int64)
        for label in {*self._by_label, *detections.labels.tolist()}:
            places = np.flatnonzero(detections.labels == label)
            given = detections[places].to_supervision()
            given.data["place"] = places
            found = self._of(label).update(given, timestamp=detections.time)
            for place, track in zip(found.data.get("place", ()), found.tracker_id, strict=True):
                if track >= 0:
                    tracks[place] = self._ids.setdefault((label, int(track)), len(self._ids) + 1)
        tracked = replace(detections, track_ids=tracks)
        floors = np.broadcast_to(np.array(self._threshold, np.float32), len(detections.class_names))[detections.labels]
        return tracked[(tracks > 0) | (detections.scores >= floors)]


def mot_lines(detections: Detections) -> Iterator[str]:
    """The tracked detections of a frame as lines of a MOT challenge file (Milan et al. 2016).

    Yields:
        `frame,id,left,top,width,height,score,-1,-1,-1`, in pixels; frames count from 1.
    """
    assert detections.track_ids is not None
    rows = zip(detections.track_ids.tolist(), detections.boxes_xyxy.tolist(), detections.scores.tolist(), strict=True)
    for track, (left, top, right, bottom), score in rows:
        if track:
            sides = f"{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f}"
            yield f"{(detections.frame or 0) + 1},{track},{sides},{score:.4f},-1,-1,-1\n"
