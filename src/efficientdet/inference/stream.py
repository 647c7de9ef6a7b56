"""The frames of a video through a detector."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from efficientdet.detections import Detections
from efficientdet.images.convert import RgbImage
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.settings import changed, divided, to_dict
from efficientdet.video.frames import Frame, Video, VideoFile, opened
from efficientdet.video.settings import TrackSettings, VideoSettings
from efficientdet.video.track import Tracker, lowest_score

if TYPE_CHECKING:
    from efficientdet.inference.settings import StreamOptions


def predict_stream(
    source: VideoFile | Video,
    predict: Callable[..., Detections],
    predict_many: Callable[..., Iterator[Detections]],
    defaults: PostprocessSettings,
    settings: StreamOptions,
) -> Iterator[Detections]:
    """Find objects in the frames of a video: what `Detector.stream` does.

    `predict` takes the latest frame of a live source, with all cores; `predict_many` those of a file, in order.
    """
    post, reading, tracking = divided(settings, PostprocessSettings, VideoSettings, TrackSettings)
    chosen, kind = changed(defaults, post), changed(TrackSettings(), tracking).track
    keywords: Any = to_dict(chosen) | {"score_threshold": lowest_score(kind, chosen.score_threshold)}
    waiting: deque[Frame] = deque()

    def images() -> Iterator[RgbImage]:
        for frame in video:
            waiting.append(frame)
            yield frame.image

    with opened(source, reading) as video:
        tracker = Tracker(kind, chosen.score_threshold, float(video.frame_rate or 30)) if kind else None
        one_by_one = (predict(image, **keywords) for image in images())
        for found in one_by_one if video.is_live else predict_many(images(), **keywords):
            frame = waiting.popleft()
            detections = replace(found, frame=frame.number, time=frame.time, source=video.name)
            yield tracker.update(detections) if tracker else detections
