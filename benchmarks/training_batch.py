"""What both training sides share: the made-up batch. Runs in this package's environment and in the peer's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_CLASSES = 90
BOXES_PER_PICTURE = 8  # COCO has 7.3 on average


def training_batch(batch: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """A made-up batch, the same on both sides.

    Returns:
        Images (B, 3, size, size); boxes_xyxy (B, N, 4) in pixels, sides from an eighth to a half of the picture's;
        labels (B, N), 0-based.
    """
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, 3, size, size), dtype=np.float32)
    # Smaller boxes would lie inside several anchors, equally well, and rounding would decide which one effdet takes.
    sides = size * 2.0 ** random.uniform(-3, -1, (batch, BOXES_PER_PICTURE, 2))
    corners = random.uniform(0, 1, sides.shape) * (size - sides)
    boxes = np.concatenate([corners, corners + sides], 2).astype(np.float32)
    labels = random.integers(0, NUM_CLASSES, boxes.shape[:2])
    return images, boxes, labels
