"""The boxes of a split in columns, so that hundreds of thousands of them are looked at together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.records import EVERY_CLASS, ImageTable, Records


class Columns(NamedTuple):
    """N images and the M boxes of all, in order.

    Attributes:
        sizes: (N, 2) int64, (height, width) in pixels.
        image_of_box: (M,) int64, index of the image.
        boxes_xyxy: (M, 4) float32, pixels of the image.
        labels: (M,) int64.
        is_ignored: (M,) bool.
    """

    sizes: NDArray[np.int64]
    image_of_box: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    is_ignored: NDArray[np.bool_]

    @property
    def negatives(self) -> int:
        """How many images have no object; see `ImageRecord.is_negative`."""
        return len(self.sizes) - len(np.unique(self.image_of_box[self.labels != EVERY_CLASS]))


def columns_of(records: Records) -> Columns:
    """The columns of a split."""
    images = records.images
    if isinstance(images, ImageTable):
        image_of_box = np.repeat(np.arange(len(images)), np.diff(images.starts))
        return Columns(images.sizes, image_of_box, images.boxes_xyxy, images.labels, images.is_ignored)
    return Columns(
        np.array([image.image_size for image in images], dtype=np.int64).reshape(-1, 2),
        np.repeat(np.arange(len(images)), [len(image.labels) for image in images]),
        np.concatenate([np.zeros((0, 4), np.float32), *(image.boxes_xyxy for image in images)]),
        np.concatenate([np.zeros(0, np.int64), *(image.labels for image in images)]),
        np.concatenate([np.zeros(0, np.bool_), *(image.is_ignored for image in images)]),
    )
