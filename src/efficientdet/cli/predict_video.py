"""Videos and cameras of `predict`: annotated MP4 files, and the detections of each frame as a line of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from rich.progress import Progress, TextColumn

from efficientdet.cli.options import progress_bar, tell_progress
from efficientdet.cli.run_results import RunResults
from efficientdet.detections import Detections
from efficientdet.errors import ImageError, SettingError
from efficientdet.inference.detector import Detector
from efficientdet.settings import divided
from efficientdet.text import in_json, without_password
from efficientdet.video.count import Counters, parse_line, read_zones
from efficientdet.video.frames import Video
from efficientdet.video.settings import TrackSettings, VideoSettings
from efficientdet.video.track import mot_lines
from efficientdet.video.write import VideoWriter


def counters_of(lines: Sequence[str], zones: Sequence[Path], track: str | None) -> Callable[[], Counters | None]:
    """What makes the counters of each video, from lines as `x1,y1,x2,y2` and files of zones; all is checked at once.

    Raises:
        SettingError: a line or a file is none, or there are lines and no tracker.
        MissingExtraError: supervision is not installed.
    """
    if lines and track is None:
        raise SettingError("line: what crosses it is counted by its track; choose a tracker: --track bytetrack")
    ends = [parse_line(line) for line in lines]
    corners = {name: zone for file in zones for name, zone in read_zones(file).items()}
    return lambda: Counters(ends, corners) if ends or corners else None


def predict_videos(
    sources: Sequence[str],
    targets: Sequence[Path],
    detector: Detector,
    results: RunResults,
    settings: Mapping[str, Any],
    *,
    make_counters: Callable[[], Counters | None] = lambda: None,
    is_annotated: bool = True,
    is_quiet: bool = False,
) -> None:
    """Predict videos and live sources one after the other, past those that cannot be read.

    Args:
        sources: paths, numbers of cameras, URLs.
        targets: the annotated MP4 of each; beside it goes `.jsonl`, and with a tracker `.txt` in MOT's format.
        detector: what finds the objects.
        results: gets an entry for each video, also for one that is cut short.
        settings: fields of `VideoSettings` and `TrackSettings`.
        make_counters: makes the lines and zones of a video.
        is_annotated: whether annotated videos are written.
        is_quiet: whether no progress is shown.
    """
    reading, tracking = divided(settings, VideoSettings, TrackSettings)
    with progress_bar(is_quiet, TextColumn("{task.fields[rate]}")) as progress:
        for source, target in zip(sources, targets, strict=True):
            try:
                with Video(source, **reading) as video:
                    _Run(video, results, target, make_counters(), is_annotated).predict(detector, progress, **tracking)
            except ImageError as error:
                results.fail(without_password(source), str(error))


class _Run:
    """One video on its way."""

    def __init__(
        self, video: Video, results: RunResults, target: Path, counters: Counters | None, is_annotated: bool
    ) -> None:
        self.video, self.results, self.counters = video, results, counters
        self.frames = self.boxes = 0
        self.target, self.lines, self.mot = target, target.with_suffix(".jsonl"), target.with_suffix(".txt")
        self.is_annotated = is_annotated
        self._mot: TextIO | None = None
        self._writer: VideoWriter | None = None
        self.counts: dict[str, Any] | None = None
        self.tracks: set[int] = set()

    def predict(self, detector: Detector, progress: Progress, **tracking: Any) -> None:
        """Predict the video to its end, or as far as it comes; what was done is kept either way."""
        begun, task = time.monotonic(), progress.add_task(self.video.name, total=self.video.count(), rate="")
        is_whole = False
        with ExitStack() as files:
            files.callback(lambda: self._finish(time.monotonic() - begun, is_whole))
            # Without a buffer: each line is in the file when it is written.
            self._lines = files.enter_context(self.lines.open("wb", buffering=0))
            self._mot = files.enter_context(self.mot.open("w", buffering=1)) if tracking.get("track") else None
            self._writer = files.enter_context(VideoWriter(self.target, self.video)) if self.is_annotated else None
            for detections in detector.stream(self.video, **tracking):
                with self.results.undisturbed():
                    self._keep(detections)
                rate = f"{self.frames / (time.monotonic() - begun):.1f} frames/s"
                progress.update(task, completed=self.frames, rate=rate)
            is_whole = True

    def _keep(self, detections: Detections) -> None:
        entry = detections.to_json()
        if self.counters is not None:
            self.counts = entry["counts"] = self.counters.update(detections)
        self._lines.write(in_json(json.dumps(entry, ensure_ascii=False)).encode() + b"\n")
        if self._mot is not None and detections.track_ids is not None:
            self._mot.writelines(mot_lines(detections))
            self.tracks.update(detections.track_ids.tolist())
        if self._writer is not None and detections.time is not None:
            image = detections.draw()
            if self.counters is not None and self.counts is not None:
                self.counters.draw(image, self.counts)
            self._writer.write(image, detections.time)
        self.frames, self.boxes = self.frames + 1, self.boxes + len(detections)

    def _finish(self, seconds: float, is_whole: bool) -> None:
        """Tell what was done, and what was not."""
        video = self.video
        entry: dict[str, Any] = {
            "source": video.name, "complete": is_whole, "frames": self.frames, "boxes": self.boxes,
            "lines": str(self.lines),
        }  # fmt: skip
        entry |= {"annotated": str(self.target)} if self.is_annotated and self.frames else {}
        entry |= {"tracks": len(self.tracks - {0}), "mot": str(self.mot)} if self._mot is not None else {}
        entry |= {"counts": self.counts} if self.counts is not None else {}
        entry |= {"dropped": video.dropped, "reconnects": video.reconnects} if video.is_live else {}
        entry |= {"damaged_packets": video.damaged} if video.damaged else {}
        problem = self._writer.problem if self._writer is not None else None
        entry |= {"sound": problem} if problem else {}
        self.results.add(entry)
        rest = [f"{key.replace('_', ' ')}: {value}" for key, value in entry.items() if key not in _TOLD]
        rate = f"{self.frames} frames in {seconds:.1f} s ({self.frames / max(seconds, 1e-9):.1f} frames/s)"
        tell_progress(f"{video.name}: {', '.join([rate, f'{self.boxes} boxes', *rest])}")


# Of an entry: what its line says in other words, or not at all.
_TOLD = ("source", "complete", "frames", "boxes", "lines", "annotated", "mot")
