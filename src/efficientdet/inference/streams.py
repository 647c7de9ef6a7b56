"""How many images at once, each on its share of the cores, give the most images a second: measured, and remembered.

One image a core leaves no core waiting for another, but where cores share caches and memory, fewer images on more cores
each can be faster. A machine of two or three cores has nothing to choose.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientdet.atomic_write import write_text
from efficientdet.cache import cache_dir, cached
from efficientdet.inference.engines.session import EndToEndEngine
from efficientdet.inference.hardware import Hardware, thread_count

if TYPE_CHECKING:
    from efficientdet.inference.engines.engine import Engine

# Cores of an image that are tried, where the cores can be shared out so.
SHARES = (1, 2, 4, 8)
# Fewer images than this are not worth measuring for, which takes some seconds of opening sessions.
MANY = 500
# How long each choice is measured; and by how much another must be faster than one image a core.
SECONDS, GAIN = 1.0, 1.03


def choose_streams(engine: Engine | EndToEndEngine, image_size: tuple[int, int], images: Iterable[Any]) -> int:
    """How many threads should run an engine at once.

    Args:
        engine: with `shared`.
        image_size: (height, width) of its input.
        images: that it will run on. What was measured before holds for any number of them.

    Returns:
        From 2 up to the number of threads; that number where nothing was measured.
    """
    threads = thread_count()
    choices = [threads // share for share in SHARES if threads % share == 0 and threads > share]
    if len(choices) < 2:
        return threads
    name = f"engines/streams-{_key(engine, image_size, threads)}.json"
    is_many = isinstance(images, Sized) and len(images) >= MANY
    if not is_many and not (cache_dir() / name).is_file():
        return threads

    def make(path: Path) -> None:
        speeds = {streams: images_per_second(engine, image_size, streams) for streams in choices}
        best = max(choices, key=lambda streams: speeds[streams])
        chosen = best if speeds[best] > GAIN * speeds[threads] else threads
        write_text(path, json.dumps({"streams": chosen, "images_per_second": speeds}))

    path = cached(name, lambda path: _chosen(path) in choices, make)
    return _chosen(path) or threads


def images_per_second(engine: Engine | EndToEndEngine, image_size: tuple[int, int], streams: int) -> float:
    """Of the network alone, on an empty image."""
    run = _run(engine, image_size, streams)
    together = threading.Barrier(streams)

    def work(_: int) -> float:
        run()  # opens what each thread has of its own
        together.wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() < start + SECONDS:
            run()
            done += 1
        return done / (time.perf_counter() - start)

    with ThreadPoolExecutor(streams) as pool:
        return sum(pool.map(work, range(streams)))


def _run(engine: Engine | EndToEndEngine, image_size: tuple[int, int], streams: int) -> Callable[[], Any]:
    if isinstance(engine, EndToEndEngine):
        image = np.zeros((1, *image_size, 3), np.uint8)
        return functools.partial(engine.shared(streams), image, np.array([image_size]))
    import torch

    assert engine.shared is not None
    return functools.partial(engine.shared(streams), torch.zeros(1, 3, *image_size))


def _key(engine: Engine | EndToEndEngine, image_size: tuple[int, int], threads: int) -> str:
    facts = (engine.key, str(engine), image_size, threads, *_machine())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


@functools.cache
def _machine() -> tuple[Any, ...]:
    """Read once: every call of `predict_many` asks."""
    hardware = Hardware.read()
    return hardware.cpu, hardware.cores, hardware.versions


def _chosen(path: Path) -> int | None:
    """What a file says; None where it is damaged."""
    try:
        return int(json.loads(path.read_text())["streams"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
