"""Makes records: finds the images, clips the boxes, drops those outside or without area, and counts all of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.check import is_file
from efficientdet.data.records import (
    BOXES_CLIPPED,
    BOXES_DEGENERATE,
    BOXES_OF_SKIPPED,
    BOXES_OUTSIDE,
    COUNTED,
    EVERY_CLASS,
    IGNORED_REGIONS,
    IMAGES_OF_IGNORED,
    IMAGES_SKIPPED,
    IMAGES_WITHOUT_BOXES,
    AnyIds,
    ChangedBox,
    ImageTable,
    Records,
)
from efficientdet.errors import DataError
from efficientdet.text import printable

# Annotation files round to two decimals; only boxes that stick out further count as clipped.
ROUNDING_PX = 0.05
# Larger stated areas are nonsense, and might not fit float32.
LARGEST_AREA = 1e12
# Boxes that are cleaned at a time: they and what is computed from them stay in the processor's cache.
CHUNK = 2**14


class RawBox(NamedTuple):
    """A box as the file has it.

    Attributes:
        xyxy: corners in pixels, finite, not clipped.
        label: 0-based; EVERY_CLASS for an ignored region of no class.
        annotation_id: the dataset's id.
        is_ignored: whether it is an ignored region.
        area: square pixels; None for the box's.
    """

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


def clean_boxes(
    boxes_xyxy: NDArray[np.float64], image_size: tuple[int, int] | NDArray[np.int64], smallest_side: float = 0.0
) -> CleanBoxes:
    """Clip boxes to their image, and find those that lie outside it or have no area.

    Args:
        boxes_xyxy: (N, 4) float64, pixels, finite.
        image_size: (height, width) of the image in pixels, or (N, 2): of each box's image.
        smallest_side: a box is degenerate if its width or height, before clipping, is not above this.

    Returns:
        The boxes and what was found.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    limits = np.asarray(image_size, dtype=np.float64)[..., [1, 0, 1, 0]]
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
    # Column by column: several times as fast as along the rows.
    return functools.reduce(np.logical_or, flags.T)


class RawImages(NamedTuple):
    """Images as the file has them, N of them, in columns."""

    file_names: Sequence[str]
    image_ids: AnyIds
    sizes: NDArray[np.int64]
    box_counts: NDArray[np.int64]


class RawBoxes(NamedTuple):
    """The boxes of all images, M of them, in columns; see `RawBox`. An area of 0 or less stands for the box's."""

    xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    annotation_ids: AnyIds
    is_ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]


def boxes_in_columns(boxes: Iterable[RawBox]) -> RawBoxes:
    """Boxes, image after image, in columns."""
    xyxy, labels, annotation_ids, is_ignored, areas = tuple(zip(*boxes, strict=True)) or ((), (), (), (), ())
    return RawBoxes(
        np.array(xyxy, dtype=np.float64).reshape(-1, 4), np.array(labels, dtype=np.int64), annotation_ids,
        np.array(is_ignored, dtype=np.bool_), np.array([area or 0.0 for area in areas], dtype=np.float64),
    )  # fmt: skip


def take(ids: AnyIds, kept: NDArray[np.bool_]) -> AnyIds:
    """The ids to keep."""
    return ids[kept] if isinstance(ids, np.ndarray) else list(itertools.compress(ids, kept.tolist()))


def plain_id(ids: AnyIds, index: int) -> int | str:
    """One of the ids, as a plain number or text."""
    one = ids[index]
    return one if isinstance(one, str) else int(one)


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
        self._images: list[tuple[str, int | str, tuple[int, int], int]] = []
        self._boxes: list[RawBox] = []

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
                "such images out with skip_missing (--skip-missing)",
                "image-missing",
            )
        self.counts[IMAGES_SKIPPED] += 1
        self.counts[BOXES_OF_SKIPPED] += boxes
        return None

    def add(self, image_id: int | str, path: Path, image_size: tuple[int, int], boxes: Iterable[RawBox]) -> None:
        """Add an image with its boxes.

        Args:
            image_id: the dataset's id of the image.
            path: its file.
            image_size: (height, width) in pixels, after EXIF orientation.
            boxes: those of the annotations.
        """
        before = len(self._boxes)
        self._boxes += boxes
        inside = path.is_relative_to(self.image_folder)
        name = path.relative_to(self.image_folder).as_posix() if inside else str(path)
        self._images.append((name, image_id, image_size, len(self._boxes) - before))

    def finish(self, class_names: Sequence[str], category_ids: Sequence[int]) -> Records:
        """The records of all images added, their boxes cleaned and counted.

        Raises:
            DataError: there are none.
        """
        names, ids, sizes, counts = zip(*self._images, strict=True) if self._images else ((), (), (), ())
        images = RawImages(names, ids, np.array(sizes, dtype=np.int64).reshape(-1, 2), np.array(counts, dtype=np.int64))
        return self.finish_columns(images, boxes_in_columns(self._boxes), class_names, category_ids)

    def finish_columns(
        self, images: RawImages, boxes: RawBoxes, class_names: Sequence[str], category_ids: Sequence[int]
    ) -> Records:
        """The same from columns, for readers that have them."""
        if not len(images.sizes):
            raise DataError(
                f"{self.source}: none of its images is in {self.image_folder} "
                f"({self.counts[IMAGES_SKIPPED]} missing); give the folder that holds the images"
            )
        image_of_box = np.repeat(np.arange(len(images.sizes)), images.box_counts)
        parts = [
            clean_boxes(boxes.xyxy[start : start + CHUNK], images.sizes[image_of_box[start : start + CHUNK]],
                        self.smallest_side)
            for start in range(0, len(image_of_box) or 1, CHUNK)
        ]  # fmt: skip
        clean = CleanBoxes(*map(np.concatenate, zip(*parts, strict=True)))
        kept = clean.kept
        labels, is_ignored, boxes_xyxy = boxes.labels, boxes.is_ignored, clean.boxes_xyxy
        if not kept.all():
            image_of_box, boxes_xyxy, labels = image_of_box[kept], boxes_xyxy[kept], labels[kept]
            is_ignored = is_ignored[kept]
        ids = boxes.annotation_ids
        table = ImageTable(
            self.image_folder, images.file_names, images.image_ids, images.sizes,
            np.bincount(image_of_box, minlength=len(images.sizes)), boxes_xyxy, labels, is_ignored,
            _areas(boxes_xyxy, boxes.areas[kept], clean.clipped[kept]),
            take(ids, kept),
        )  # fmt: skip
        self._count(clean, len(images.sizes), image_of_box, labels, is_ignored)
        changed = list(self._changed(clean, images, boxes))
        return Records(table, tuple(class_names), tuple(category_ids), self.source, self.counts, changed)

    def _changed(self, clean: CleanBoxes, images: RawImages, boxes: RawBoxes) -> Iterator[ChangedBox]:
        """The boxes that are not as they were, in their order."""
        ends = np.cumsum(images.box_counts)
        for index in np.flatnonzero(clean.clipped | ~clean.kept).tolist():
            image = int(np.searchsorted(ends, index, side="right"))
            what = BOXES_OUTSIDE if clean.outside[index] else BOXES_CLIPPED
            height, width = images.sizes[image].tolist()
            yield ChangedBox(
                BOXES_DEGENERATE if clean.degenerate[index] else what, plain_id(images.image_ids, image),
                self.image_folder / images.file_names[image], (height, width),
                plain_id(boxes.annotation_ids, index),
                tuple(boxes.xyxy[index].tolist()), int(boxes.labels[index]), bool(boxes.is_ignored[index]),
            )  # fmt: skip

    def _count(
        self, clean: CleanBoxes, images: int, image_of_box: NDArray[np.int64], labels: NDArray[np.int64],
        is_ignored: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        has_object = np.bincount(image_of_box[labels != EVERY_CLASS], minlength=images) > 0
        has_training_box = np.bincount(image_of_box[~is_ignored], minlength=images) > 0
        for name, count in (
            (BOXES_CLIPPED, clean.clipped.sum()),
            (BOXES_OUTSIDE, clean.outside.sum()),
            (BOXES_DEGENERATE, clean.degenerate.sum()),
            (IGNORED_REGIONS, is_ignored.sum()),
            (IMAGES_WITHOUT_BOXES, (~has_object).sum()),
            (IMAGES_OF_IGNORED, (has_object & ~has_training_box).sum()),
        ):
            self.counts[name] += int(count)


def _areas(
    boxes_xyxy: NDArray[np.float32], given: NDArray[np.float64], clipped: NDArray[np.bool_]
) -> NDArray[np.float32]:
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    box_areas = sides[:, 0] * sides[:, 1]
    # An object cannot cover more than its box, so clipping limits the area too.
    areas = np.minimum(given, np.where(clipped, box_areas, LARGEST_AREA))
    result: NDArray[np.float32] = np.where(given > 0, areas, box_areas).astype(np.float32)
    return result
