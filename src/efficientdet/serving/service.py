"""The way of a request: its limits, its settings, the detector that it chose, and what was found in its images."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import Request

from efficientdet.errors import ImageError, SettingError, unknown_name
from efficientdet.images.read import image_size
from efficientdet.inference.hardware import core_count
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.serving.body import Options, RequestError, Upload, read_request
from efficientdet.serving.observe import Metrics
from efficientdet.serving.settings import MOST_PIXELS, ServeSettings
from efficientdet.serving.worker import Found, QueueFullError, Worker
from efficientdet.settings import changed

if TYPE_CHECKING:
    from efficientdet.inference.detector import Detector

# A request may not ask for more work than the server's own setting.
_CEILINGS = ("max_detections", "max_candidates")


class Service:
    """The detectors of a server, and the way of a request through them.

    Attributes:
        workers: by the name of their model; the first is the default.
        drawing: how many images may be decoded and drawn on at once.
    """

    def __init__(self, detectors: Mapping[str, Detector], settings: ServeSettings) -> None:
        """Build each detector's engine, run it once, and start its thread."""
        self.settings = settings
        self.workers = {
            name: Worker(detector, settings.queue_size, settings.batch_size) for name, detector in detectors.items()
        }
        self.metrics = Metrics(self.workers)
        self.drawing = anyio.CapacityLimiter(core_count())
        self._in_progress = 0

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        for worker in self.workers.values():
            worker.close()

    async def detect(self, request: Request, max_images: int | None = None) -> tuple[str, list[Upload], list[Found]]:
        """The model that a request chose, its images, and what was found in each.

        Args:
            request: its body is read here.
            max_images: largest number of images; by default the server's.

        Raises:
            QueueFullError: too much is waiting already.
            RequestError: a limit was reached, or the body cannot be read.
            SettingError: a setting is unknown or out of range.
            pydantic.ValidationError: a setting is of the wrong type.
        """
        limit = self.settings.time_limit
        with self._one_more_request():
            with _time_limit(limit, 408, "slow_request", f"the request did not arrive within {limit:g} s; send less"):
                images, given = await read_request(
                    request, self.settings.max_megabytes, max_images or self.settings.max_images
                )
            options = Options.model_validate(given).model_dump(exclude_unset=True)
            options = {name: value for name, value in options.items() if value is not None}
            name, classes = options.pop("model", next(iter(self.workers))), options.pop("classes", None)
            if name not in self.workers:
                raise unknown_name("model", name, self.workers)
            worker = self.workers[name]
            chosen = _check(worker.detector, options, classes)
            request.state.facts.update(model=name, images=len(images))
            with _time_limit(limit, 504, "time_limit", f"not done within {limit:g} s; send fewer or smaller images"):
                futures = worker.submit([image.data for image in images], options, self._refusals(chosen))
                found: list[Found] = await asyncio.gather(*map(asyncio.wrap_future, futures))
        for one in found:
            self.metrics.images.labels(name, "unreadable" if isinstance(one, ImageError) else "predicted").inc()
        if classes is not None:
            found = [one if isinstance(one, ImageError) else one.filter(classes=classes) for one in found]
        return name, images, found

    @contextmanager
    def _one_more_request(self) -> Iterator[None]:
        """Count a request, before its body is read: bodies take memory too."""
        if self._in_progress >= self.settings.queue_size:
            raise QueueFullError(f"{self._in_progress} requests are in progress already; try again in 1 s", 1)
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1

    def _refusals(self, settings: PostprocessSettings) -> Callable[[bytes], ImageError | None] | None:
        """What refuses images; None where `images.read` does it by itself, whose limit of pixels is the default."""
        if settings.tiles is None and self.settings.max_pixels == MOST_PIXELS:
            return None
        return functools.partial(self._refusal, settings=settings)

    def _refusal(self, image: bytes, settings: PostprocessSettings) -> ImageError | None:
        """Why an image is refused by its header, before a pixel is decoded."""
        try:
            height, width = image_size(image)
        except ImageError as error:
            return error.with_traceback(None)
        most = self.settings.max_pixels
        if height * width > most:
            return ImageError(f"{width}x{height} is over the limit of {most:,} pixels; shrink the image")
        if (side := settings.tiles) is not None:
            step, most = max(1, int(side * (1 - settings.overlap))), self.settings.max_tiles
            count = math.prod(-(-max(length - side, 0) // step) + 1 for length in (height, width))
            if count > most:
                return ImageError(
                    f"{width}x{height} has {count:,} tiles of {side}; at most {most} are allowed; take larger tiles"
                )
        return None


def _check(detector: Detector, settings: Mapping[str, Any], classes: Sequence[str] | None) -> PostprocessSettings:
    """The detector's settings with those of a request; refuses what cannot be before anything waits for the network."""
    chosen = changed(detector.postprocess, settings)
    for name in _CEILINGS:
        value, most = getattr(chosen, name), getattr(detector.postprocess, name)
        if value > most:
            option = f"--{name.replace('_', '-')}"
            raise SettingError(f"{name} is {value}; this server allows at most {most} (its option {option})")
    for name in classes or ():
        if name not in detector.class_names:
            raise unknown_name("class", name, detector.class_names)
    return chosen


@contextmanager
def _time_limit(seconds: float, status: int, code: str, message: str) -> Iterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise RequestError(status, code, message) from error
