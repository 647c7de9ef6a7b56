"""Predictions on a GPU are those of a CPU: the first, those of a captured graph, in batches, from several threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientdet.detections import Detections
from efficientdet.images.find import sample_image
from efficientdet.images.letterbox import IMAGENET, letterbox, letterbox_bytes
from efficientdet.inference.detector import load

IMAGE_SIZE = 256
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


@pytest.fixture(scope="module")
def images() -> list[Any]:
    with Image.open(sample_image()) as photo:
        whole = photo.convert("RGB")
        return [np.asarray(whole.resize((200 + 40 * i, 300 - 30 * i))) for i in range(5)]


@pytest.fixture(autouse=True)
def exact_arithmetic() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def check(found: Detections, expected: Detections, boxes: float = 0.05, scores: float = 1e-4) -> None:
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=scores)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=boxes)


def test_pixels_are_normalized_as_on_a_cpu(images: list[Any]) -> None:
    from efficientdet.inference.gpu import normalize

    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    pixels = letterbox_bytes(images[1], (128, 160))
    content = torch.tensor([[128.0, int(images[1].shape[1] * 128 / images[1].shape[0])]])
    found = normalize(torch.from_numpy(pixels)[None], content, mean, std)
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(found[0].numpy(), letterbox(images[1], (128, 160), IMAGENET)[0])


@needs_gpu
@pytest.mark.parametrize("nms", ["hard", "soft", "matrix", "wbf"])
def test_same_as_on_a_cpu(nms: Any, images: list[Any]) -> None:
    how: dict[str, Any] = {"image_size": IMAGE_SIZE, "nms": nms, "score_threshold": 0.2}
    expected = load("people", device="cpu", **how).predict(images)
    assert sum(map(len, expected)) > 3
    detector = load("people", device="cuda", **how)
    for _ in range(3):  # as it comes, captured, replayed
        for image, one in zip(images, expected, strict=True):
            check(detector.predict(image), one)
    for _ in range(3):  # batches of two, and one of one
        for found, one in zip(detector.predict(images, batch_size=2), expected, strict=True):
            check(found, one)


@needs_gpu
def test_threads_do_not_disturb_each_other(images: list[Any]) -> None:
    detector = load("people", device="cuda", image_size=IMAGE_SIZE, score_threshold=0.2)
    expected = detector.predict(images)
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(detector.predict, images * 40)):
            check(found, expected[number % len(images)])


@needs_gpu
def test_more_pairs_than_a_graph_has_room_for(images: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientdet.inference import postprocess_gpu

    how: dict[str, Any] = {"image_size": IMAGE_SIZE, "score_threshold": 0.001, "max_candidates": 64}
    expected = load("people", device="cpu", **how).predict(images)
    monkeypatch.setattr(postprocess_gpu, "MOST_CANDIDATES", 64)
    monkeypatch.setattr(postprocess_gpu, "FACTOR", 1)
    detector = load("people", device="cuda", **how)
    for _ in range(3):
        for image, one in zip(images, expected, strict=True):
            assert abs(len(detector.predict(image)) - len(one)) <= 2  # the last of 64 pairs may be another


@needs_gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(precision: Any, images: list[Any]) -> None:
    expected = load("people", device="cpu", image_size=IMAGE_SIZE).predict(images)
    detector = load("people", device="cuda", image_size=IMAGE_SIZE, precision=precision)
    for _ in range(2):
        for image, one in zip(images, expected, strict=True):
            found = detector.predict(image)
            assert abs(len(found) - len(one)) <= 1
            if len(found) == len(one):
                np.testing.assert_allclose(found.scores, one.scores, atol=0.08)


@needs_gpu
@pytest.mark.slow
def test_compiled(images: list[Any]) -> None:
    expected = load("people", device="cpu", image_size=IMAGE_SIZE).predict(images)
    detector = load("people", device="cuda", image_size=IMAGE_SIZE, backend="compile")
    for _ in range(3):
        for image, one in zip(images, expected, strict=True):
            check(detector.predict(image), one)
