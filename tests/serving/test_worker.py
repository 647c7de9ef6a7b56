"""The queue and its thread, with a real detector."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientdet.detections import Detections
from efficientdet.errors import ImageError
from efficientdet.inference.detector import Detector, load

pytest.importorskip("fastapi", reason="fastapi is missing (extra serve)")
from efficientdet.serving.worker import QueueFullError, Worker  # noqa: E402


def encoded(seed: int) -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40 + seed, 60, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = [encoded(seed) for seed in range(6)]


class Held:
    """A detector whose next prediction waits until it is let go; it notes how images come to it."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.go, self.begun = detector, threading.Event(), threading.Event()
        self.calls: list[list[Any]] = []
        self.predict_one, self.predict_many = detector.predict, detector.try_many

    def __enter__(self) -> Held:
        def predict(source: Any, **settings: Any) -> Any:
            self.begun.set()
            assert self.go.wait(600)
            self.calls.append(["alone", 1])
            return self.predict_one(source, **settings)

        def try_many(sources: Any, **settings: Any) -> Iterator[Any]:
            call: list[Any] = ["together", 0]
            self.calls.append(call)
            for found in self.predict_many(sources, **settings):
                call[1] += 1
                yield found

        self.detector.predict, self.detector.try_many = predict, try_many  # type: ignore[assignment,method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        self.go.set()
        del self.detector.predict, self.detector.try_many  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def detector(tiny: Path) -> Detector:
    return load(tiny, backend="eager", device="cpu")


@pytest.fixture
def worker(detector: Detector) -> Iterator[Worker]:
    made = Worker(detector, queue_size=4, batch_size=3)
    yield made
    made.close()


def same(found: object, expected: Detections) -> bool:
    assert isinstance(found, Detections)
    assert found.image is None
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    return len(expected) > 0


def test_what_waits_together_goes_together(worker: Worker, detector: Detector) -> None:
    expected = [detector.predict(image) for image in IMAGES]
    with Held(detector) as held:
        first = worker.submit(IMAGES[:1], {})
        assert held.begun.wait(600)
        rest = [future for image in IMAGES[1:5] for future in worker.submit([image], {})]
        assert len(worker) == 4
        held.go.set()
        found = [future.result(600) for future in (*first, *rest)]
    assert held.calls == [["alone", 1], ["together", 4]]
    assert all(same(one, other) for one, other in zip(found, expected, strict=False))


def test_other_settings_go_after_each_other_in_their_order(worker: Worker, detector: Detector) -> None:
    with Held(detector) as held:
        futures = worker.submit(IMAGES[:1], {})
        assert held.begun.wait(600)
        for image, settings in zip(IMAGES[1:5], ({}, {}, {"max_detections": 1}, {}), strict=True):
            futures += worker.submit([image], settings)
        held.go.set()
        found = [future.result(600) for future in futures]
    assert held.calls == [["alone", 1], ["together", 2], ["alone", 1], ["alone", 1]]
    assert [len(one) == 1 for one in found if isinstance(one, Detections)] == [False, False, False, True, False]


def test_a_full_queue_takes_all_of_a_request_or_nothing(worker: Worker, detector: Detector) -> None:
    with Held(detector) as held:
        worker.submit(IMAGES[:1], {})
        assert held.begun.wait(600)
        worker.submit(IMAGES[:3], {})
        with pytest.raises(QueueFullError, match="3 images wait already; try again in 1 s") as caught:
            worker.submit(IMAGES[:2], {})
        assert caught.value.retry_after == 1
        assert len(worker) == 3
        (last,) = worker.submit(IMAGES[:1], {})
        held.go.set()
        assert isinstance(last.result(600), Detections)


def test_what_is_cancelled_in_time_is_not_predicted(worker: Worker, detector: Detector) -> None:
    with Held(detector) as held:
        (first,) = worker.submit(IMAGES[:1], {})
        assert held.begun.wait(600)
        cancelled = worker.submit(IMAGES[1:3], {})
        (last,) = worker.submit(IMAGES[3:4], {})
        assert all(future.cancel() for future in cancelled)
        assert not first.cancel()
        held.go.set()
        assert isinstance(last.result(600), Detections)
    assert sum(count for _, count in held.calls) == 2


def test_an_image_that_cannot_be_read_is_an_error_in_its_place(worker: Worker) -> None:
    for images in ([b"no image"], [IMAGES[0], b"no image", IMAGES[1]]):
        found = [future.result(600) for future in worker.submit(images, {})]
        assert [isinstance(one, ImageError) for one in found] == [image == b"no image" for image in images]


@pytest.mark.parametrize("settings", [{}, {"tiles": 32}], ids=["whole", "tiles"])
def test_an_error_that_was_given_out_is_gone_without_the_garbage_collector(
    settings: dict[str, Any], worker: Worker, detector: Detector
) -> None:
    gc.disable()
    try:
        with Held(detector) as held:  # the first goes alone, the others together
            futures = worker.submit([b"no image"], settings)
            assert held.begun.wait(600)
            futures += worker.submit([b"no image", IMAGES[0], b"no image"], settings)
            held.go.set()
            kept = [weakref.ref(one) for future in futures if isinstance(one := future.result(600), ImageError)]
        del futures, one
        worker.submit(IMAGES[:1], settings)[0].result(600)  # until then the thread may hold the last one
        assert len(kept) == 3 and not any(one() for one in kept)
    finally:
        gc.enable()


def test_an_image_that_fails_takes_no_other_with_it(
    worker: Worker, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = detector._detect

    def fail(images: Any, *rest: Any, **settings: Any) -> Any:
        if any(image.image_size == (41, 60) for image in images):
            raise MemoryError("too little")
        return detect(images, *rest, **settings)

    monkeypatch.setattr(detector, "_detect", fail)
    futures = worker.submit(IMAGES[:4], {})
    errors = [future.exception(600) for future in futures]
    assert [type(error) for error in errors] == [type(None), MemoryError, type(None), type(None)]


def test_closing_finishes_what_waits(detector: Detector) -> None:
    worker = Worker(detector, queue_size=4, batch_size=3)
    futures = worker.submit(IMAGES[:4], {})
    worker.close()
    assert all(future.done() for future in futures)
