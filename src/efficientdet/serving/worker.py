"""A detector at work: a bounded queue, and the one thread that takes what waits there through the network together."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from efficientdet.detections import Detections
from efficientdet.errors import EfficientDetError, ImageError

if TYPE_CHECKING:
    from efficientdet.inference.detector import Detector

Found: TypeAlias = "Detections | ImageError"


class QueueFullError(EfficientDetError):
    """More images wait than the queue takes.

    Attributes:
        retry_after: seconds until those that wait should be done.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclasses.dataclass(frozen=True)
class _Job:
    image: bytes
    settings: dict[str, Any]
    refuse: Callable[[bytes], ImageError | None] | None
    future: Future[Found] = dataclasses.field(default_factory=Future)


class Worker:
    """A detector with its queue and its thread.

    Images that wait together and have the same settings go through `Detector.try_many`, an image that waits alone
    through `Detector.predict`, which gives one image all cores.
    """

    def __init__(self, detector: Detector, queue_size: int, batch_size: int) -> None:
        """Build the detector's engine, run it once, and start the thread.

        Args:
            detector: what finds the objects.
            queue_size: largest number of images that wait.
            batch_size: images that go through the network together.
        """
        self.detector = detector
        self._queue_size, self._batch_size = queue_size, batch_size
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_open = True
        self._seconds_per_image = 0.0
        detector.warmup()
        list(detector.try_many([np.zeros((*detector.image_size, 3), np.uint8)] * 2))
        self._thread = threading.Thread(target=self._work, name="detector", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many images wait."""
        return len(self._waiting)

    def submit(
        self,
        images: Sequence[bytes],
        settings: dict[str, Any],
        refuse: Callable[[bytes], ImageError | None] | None = None,
    ) -> list[Future[Found]]:
        """Queue images; all of them or none.

        Args:
            images: encoded files.
            settings: fields of `PostprocessSettings`.
            refuse: says, when an image's turn comes, why it is not even decoded, or None; raises nothing.

        Returns:
            For each image what will be found in it, without the `image` itself, or why it cannot be read. A future that
            is cancelled before its turn costs nothing.

        Raises:
            QueueFullError: there is no room for them; says when there should be.
        """
        jobs = [_Job(image, settings, refuse) for image in images]
        with self._changed:
            if len(self._waiting) + len(jobs) > self._queue_size:
                seconds = max(1, math.ceil(len(self._waiting) * self._seconds_per_image))
                raise QueueFullError(f"{len(self._waiting)} images wait already; try again in {seconds} s", seconds)
            self._waiting.extend(jobs)
            self._changed.notify()
        return [job.future for job in jobs]

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread once everything that waits is done."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._wait():
            if (job := self._take()) is not None:
                self._run(job)

    def _wait(self) -> bool:
        """Wait for images; False where there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._is_open)
            return bool(self._waiting)

    def _take(self, like: _Job | None = None) -> _Job | None:
        """The first that waits and is not refused, if it has the settings of another one; None where there is none."""
        while (job := self._next(like)) is not None:
            if job.refuse is None or (refusal := job.refuse(job.image)) is None:
                return job
            job.future.set_result(refusal)
        return None

    def _next(self, like: _Job | None) -> _Job | None:
        with self._changed:
            while self._has_more(like):
                job = self._waiting.popleft()
                if job.future.set_running_or_notify_cancel():
                    return job
            return None

    def _has_more(self, like: _Job | None) -> bool:
        return bool(self._waiting) and (like is None or self._waiting[0].settings == like.settings)

    def _run(self, first: _Job) -> None:
        """Predict an image, with those that wait, or arrive meanwhile, and have its settings."""
        start = time.perf_counter()
        for _ in self._run_alone(first) if not self._has_more(first) else self._run_together(first):
            seconds, start = time.perf_counter() - start, time.perf_counter()
            self._seconds_per_image += (seconds - self._seconds_per_image) / 10

    def _run_together(self, first: _Job) -> Iterator[None]:
        running = deque([first])

        def images() -> Iterator[bytes]:
            job: _Job | None = first
            while job is not None:
                yield job.image
                if (job := self._take(first)) is not None:
                    running.append(job)

        try:
            for found in self.detector.try_many(images(), batch_size=self._batch_size, **first.settings):
                running.popleft().future.set_result(_without_pixels(found))
                yield
        except Exception:  # too little memory, say: whichever image is at fault, the others get their answer
            for job in running:
                yield from self._run_alone(job)

    def _run_alone(self, job: _Job) -> Iterator[None]:
        try:
            job.future.set_result(_without_pixels(self.detector.predict(job.image, **job.settings)))
        except ImageError as error:
            job.future.set_result(error.with_traceback(None))
        except Exception as error:
            job.future.set_exception(error)
        yield


def _without_pixels(found: Found) -> Found:
    """What was found, without the decoded image, which takes far more memory than the file that it is from."""
    return found if isinstance(found, ImageError) else dataclasses.replace(found, image=None)
