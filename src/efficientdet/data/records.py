"""Records: what every reader returns.

A reader parses its format and passes images and boxes to `RecordsBuilder`, which finds the images, clips the boxes,
drops those that lie outside or have no area, and counts all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.check import is_file
from efficientdet.errors import DataError
from efficientdet.text import printable

BOXES_CLIPPED = "boxes clipped"
BOXES_OUTSIDE = "boxes dropped: outside"
BOXES_DEGENERATE = "boxes dropped: degenerate"
BOXES_OF_SKIPPED = "boxes skipped: image file missing"
IMAGES_SKIPPED = "images skipped: file missing"
IGNORED_REGIONS = "ignored regions"
IMAGES_WITHOUT_BOXES = "images without boxes"
IMAGES_OF_IGNORED = "images with ignored regions only, not trained on"
# Counted by the training, which knows the size of its input.
BOXES_TOO_SMALL = "boxes too small for this image size"
COUNTED = (
    BOXES_CLIPPED,
    BOXES_OUTSIDE,
    BOXES_DEGENERATE,
    BOXES_OF_SKIPPED,
    IMAGES_SKIPPED,
    IGNORED_REGIONS,
    IMAGES_WITHOUT_BOXES,
    IMAGES_OF_IGNORED,
)

# Label of an ignored region that belongs to no class.
EVERY_CLASS = -1
# Annotation files round to two decimals; only boxes that stick out further count as clipped.
ROUNDING_PX = 0.05
# Larger stated areas are nonsense, and might not fit float32.
LARGEST_AREA = 1e12


@dataclass(eq=False)
class ImageRecord:
    """One image and its boxes, clipped to the image.

    Attributes:
        image_id: the dataset's id of the image.
        path: file of the image.
        width: pixels, after EXIF orientation.
        height: pixels, after EXIF orientation.
        boxes_xyxy: (N, 4) float32, pixels of the image, 0-based, right and bottom edges exclusive.
        labels: (N,) int64, 0-based, contiguous over the classes of the dataset; -1 for an ignored region of every class.
        is_ignored: (N,) bool: ignored regions (a crowd, a difficult object, a mask), in which nothing is learned and
            evaluation counts neither hits nor errors.
        areas: (N,) float32, square pixels: the annotation's, else the box's.
        annotation_ids: N ids, as in the file.
    """

    image_id: int | str
    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    is_ignored: NDArray[np.bool_]
    areas: NDArray[np.float32]
    annotation_ids: list[int | str]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def is_negative(self) -> bool:
        """Whether the image has no object; one whose objects are all ignored, such as a crowd, is not a negative."""
        return not (self.labels != EVERY_CLASS).any()


@dataclass(eq=False)
class Records:
    """A dataset, or one split of it: images with boxes, classes, and what the reader changed.

    Attributes:
        images: one record an image, in the order of the file.
        class_names: names by label.
        category_ids: the dataset's ids by label.
        source: the file or folder that was read.
        counts: numbers of boxes and images that were clipped, dropped or skipped; every key is present.
    """

    images: list[ImageRecord]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: Path
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def training_boxes(self) -> int:
        """Number of boxes to train on: all but the ignored regions."""
        return sum(int(np.count_nonzero(~record.is_ignored)) for record in self.images)

    def to_coco(self) -> dict[str, Any]:
        """The annotations as a COCO dict of plain Python types.

        Returns:
            `images`, `annotations` (bbox xywh in pixels, ignored regions included, as crowds) and `categories`, with the dataset's
            image and category ids. A region that is ignored for every class is repeated for each. Annotations are numbered from 1: the COCO evaluators take id 0 for "no match" and
            count such an annotation as missed.
        """
        annotations: list[dict[str, Any]] = []
        for record in self.images:
            x1, y1, x2, y2 = record.boxes_xyxy.astype(np.float64).T
            boxes_xywh = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
            for index, bbox in enumerate(boxes_xywh.tolist()):
                label = int(record.labels[index])
                annotations += [
                    {
                        "id": number,
                        "image_id": record.image_id,
                        "category_id": category_id,
                        "bbox": bbox,
                        "area": float(record.areas[index]),
                        "iscrowd": int(record.is_ignored[index]),
                    }
                    for number, category_id in enumerate(
                        self.category_ids if label == EVERY_CLASS else (self.category_ids[label],),
                        start=len(annotations) + 1,
                    )
                ]
        return {
            "info": {"description": str(self.source)},
            "images": [
                {"id": r.image_id, "file_name": r.path.name, "width": r.width, "height": r.height} for r in self.images
            ],
            "annotations": annotations,
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }


class RawBox(NamedTuple):
    """A box as the file has it: corners in pixels (finite, not clipped), label (EVERY_CLASS only if ignored), and more."""

    xyxy: tuple[float, float, float, float]
    label: int
    annotation_id: int | str
    is_ignored: bool = False
    area: float | None = None


class CleanBoxes(NamedTuple):
    """Result of `clean_boxes`.

    Attributes:
        boxes_xyxy: (N, 4) float32, clipped; a row for every given box.
        clipped: (N,) bool; not set for boxes to drop.
        outside: (N,) bool, boxes to drop.
        degenerate: (N,) bool, boxes to drop; none of them is `outside` too.
    """

    boxes_xyxy: NDArray[np.float32]
    clipped: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    degenerate: NDArray[np.bool_]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(N,) bool: the boxes to keep."""
        return ~(self.outside | self.degenerate)


def clean_boxes(boxes_xyxy: NDArray[np.float64], image_size: tuple[int, int], smallest_side: float = 0.0) -> CleanBoxes:
    """Clip boxes to an image, and find those that lie outside it or have no area.

    Args:
        boxes_xyxy: (N, 4) float64, pixels, finite.
        image_size: (height, width) of the image in pixels.
        smallest_side: a box is degenerate if its width or height, before clipping, is not above this.

    Returns:
        The boxes and what was found.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    height, width = image_size
    limits = np.array([width, height, width, height], dtype=np.float64)
    with np.errstate(over="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
    degenerate = _any_in_row(sides <= smallest_side)
    inside = np.clip(boxes, 0.0, limits)
    outside = _any_in_row(inside[:, 2:] <= inside[:, :2]) & ~degenerate
    result = inside.astype(np.float32)
    # A sliver may be too thin for the resolution of float32.
    degenerate |= _any_in_row(result[:, 2:] <= result[:, :2]) & ~outside
    moved = _any_in_row(np.abs(inside - boxes) > ROUNDING_PX)
    return CleanBoxes(result, moved & ~outside & ~degenerate, outside, degenerate)


def _any_in_row(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.logical_or.reduce(flags, axis=1)
    return result


class RecordsBuilder:
    """Collects images and boxes of one dataset, with the checks that hold for every format."""

    def __init__(
        self, source: Path, image_folder: Path, skip_missing: bool = False, smallest_side: float = 0.0
    ) -> None:
        """Start an empty collection.

        Args:
            source: the file or folder being read, for messages.
            image_folder: folder of the images.
            skip_missing: leave out images whose file is missing, and count them.
            smallest_side: see `clean_boxes`.
        """
        self.source = source
        self.image_folder = image_folder
        self.skip_missing = skip_missing
        self.smallest_side = smallest_side
        self.counts: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self.images: list[ImageRecord] = []

    def locate(self, file_name: str, place: str, boxes: int) -> Path | None:
        """Path of an image; None if it is missing and may be skipped, which is counted together with its boxes.

        Raises:
            DataError: the file is missing.
        """
        path = self.image_folder / file_name
        if is_file(path):
            return path
        if not self.skip_missing:
            raise DataError(
                f"{place}: the image '{printable(file_name)}' is not in {self.image_folder}; put it there, or leave "
                "such images out with skip_missing (--skip-missing)"
            )
        self.counts[IMAGES_SKIPPED] += 1
        self.counts[BOXES_OF_SKIPPED] += boxes
        return None

    def add(self, image_id: int | str, path: Path, image_size: tuple[int, int], boxes: Sequence[RawBox]) -> None:
        """Add an image with its boxes, cleaned and counted.

        Args:
            image_id: the dataset's id of the image.
            path: its file.
            image_size: (height, width) in pixels, after EXIF orientation.
            boxes: those of the annotations.
        """
        given = np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4)
        clean = clean_boxes(given, image_size, self.smallest_side)
        self.counts[BOXES_CLIPPED] += int(clean.clipped.sum())
        self.counts[BOXES_OUTSIDE] += int(clean.outside.sum())
        self.counts[BOXES_DEGENERATE] += int(clean.degenerate.sum())
        kept = [box for box, is_kept in zip(boxes, clean.kept.tolist(), strict=True) if is_kept]
        is_ignored = np.array([box.is_ignored for box in kept], dtype=np.bool_)
        boxes_xyxy = clean.boxes_xyxy[clean.kept]
        height, width = image_size
        self.images.append(
            ImageRecord(
                image_id=image_id,
                path=path,
                width=width,
                height=height,
                boxes_xyxy=boxes_xyxy,
                labels=np.array([box.label for box in kept], dtype=np.int64),
                is_ignored=is_ignored,
                areas=_areas(boxes_xyxy, kept, clean.clipped[clean.kept]),
                annotation_ids=[box.annotation_id for box in kept],
            )
        )
        self.counts[IGNORED_REGIONS] += int(is_ignored.sum())
        self.counts[IMAGES_WITHOUT_BOXES] += self.images[-1].is_negative
        self.counts[IMAGES_OF_IGNORED] += bool(is_ignored.all()) and not self.images[-1].is_negative

    def finish(self, class_names: Sequence[str], category_ids: Sequence[int]) -> Records:
        """The records of all images added.

        Raises:
            DataError: there are none.
        """
        if not self.images:
            raise DataError(
                f"{self.source}: none of its images is in {self.image_folder} "
                f"({self.counts[IMAGES_SKIPPED]} missing); give the folder that holds the images"
            )
        return Records(self.images, tuple(class_names), tuple(category_ids), self.source, self.counts)


def _areas(boxes_xyxy: NDArray[np.float32], boxes: Sequence[RawBox], clipped: NDArray[np.bool_]) -> NDArray[np.float32]:
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    box_areas = sides[:, 0] * sides[:, 1]
    given = np.array([box.area or 0.0 for box in boxes], dtype=np.float64)
    # An object cannot cover more than its box, so clipping limits the area too.
    areas = np.minimum(given, np.where(clipped, box_areas, LARGEST_AREA))
    result: NDArray[np.float32] = np.where(given > 0, areas, box_areas).astype(np.float32)
    return result
