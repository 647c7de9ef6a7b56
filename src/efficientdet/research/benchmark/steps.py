"""A prediction one step after another, with the clock beside it: the functions that `Detector.predict` calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientdet.images.convert import RgbImage
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import ImageSource, read, read_reduced
from efficientdet.inference.detector import Detector
from efficientdet.inference.postprocess import BatchDetections, postprocess
from efficientdet.network.anchors import make_anchors
from efficientdet.research.benchmark.conversation import Stopwatch

# The parts of a prediction, in order.
PARTS = ("decode", "preprocess", "network", "postprocess")


class Picture(NamedTuple):
    """(H, W, 3) uint8 RGB, and the (height, width) of the whole picture, of which it may be a smaller copy."""

    image: RgbImage
    size: tuple[int, int]


def read_all(detector: Detector, sources: Sequence[ImageSource]) -> list[Picture]:
    """Read pictures as the detector does.

    Raises:
        ImageError: one cannot be read; names it.
    """
    if detector.settings.reduced_decoding:
        return [Picture(*read_reduced(source, detector.image_size)) for source in sources]
    return [Picture(image, image.shape[:2]) for image in map(read, sources)]


def input_batch(detector: Detector, pictures: Sequence[Picture]) -> tuple[Tensor, list[float]]:
    """Letterbox pictures of any sizes as the detector does.

    Args:
        detector: its size and preprocessing are used.
        pictures: of one batch.

    Returns:
        (B, 3, height, width) float32 on the detector's device; and the scale of each picture.
    """
    prepared = [
        letterbox(image, detector.input_size(size), detector.info.preprocessing, size) for image, size in pictures
    ]
    canvases = [canvas for canvas, _ in prepared]
    height, width = (max(canvas.shape[axis] for canvas in canvases) for axis in (1, 2))
    if len(canvases) == 1:
        batch = canvases[0][None]
    else:
        batch = np.zeros((len(canvases), 3, height, width), np.float32)
        for place, canvas in zip(batch, canvases, strict=True):
            place[:, : canvas.shape[1], : canvas.shape[2]] = canvas
    return torch.from_numpy(batch).to(detector.device), [scale for _, scale in prepared]


def boxes_of(
    detector: Detector, outputs: tuple[list[Tensor], list[Tensor]], pixels: Tensor, scales: Sequence[float],
    pictures: Sequence[Picture],
) -> BatchDetections:  # fmt: skip
    """Post-process raw outputs as the detector does.

    Args:
        detector: its anchors and settings are used.
        outputs: of its engine.
        pixels: what the engine was given.
        scales: of each picture.
        pictures: of the batch.

    Returns:
        The detections, on the CPU.
    """
    found = postprocess(
        *outputs, make_anchors(detector.info.spec, (pixels.shape[2], pixels.shape[3]), detector.device),
        detector.postprocess,
        scales=torch.tensor(scales, device=detector.device),
        image_sizes=torch.tensor([picture.size for picture in pictures], device=detector.device),
    )  # fmt: skip
    return BatchDetections(*(part.cpu() for part in found))


@torch.inference_mode()
def predict_in_steps(detector: Detector, sources: Sequence[ImageSource]) -> tuple[BatchDetections, dict[str, float]]:
    """Predict a batch as `Detector.predict` does, and say how long each part took.

    Args:
        detector: any.
        sources: the pictures of one batch.

    Returns:
        The detections; and milliseconds by the names in `PARTS`.

    Raises:
        ImageError: a picture cannot be read.
    """
    watch = stopwatch(detector)
    with watch.part("decode"):
        pictures = read_all(detector, sources)
    with watch.part("preprocess"):
        pixels, scales = input_batch(detector, pictures)
    with watch.part("network"):
        outputs = detector.engine.run(pixels)
    with watch.part("postprocess"):
        found = boxes_of(detector, outputs, pixels, scales, pictures)
    return found, watch.milliseconds


def stopwatch(detector: Detector) -> Stopwatch:
    """One that waits for the detector's device."""
    return Stopwatch(torch.cuda.synchronize) if detector.device.type == "cuda" else Stopwatch()
