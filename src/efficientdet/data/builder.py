"""Makes records of what a reader found: finds and measures the images, cleans the boxes, and counts what is changed.

Each reader gives `RawImage`s, or the same in columns (`Columns`), to `build`; what holds for every format is here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.fields import Entry, check_file_name, check_size, find_image_folder, is_file, measure
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
    Columns,
    ImageTable,
    Records,
)
from efficientdet.errors import DataError, unknown_name
from efficientdet.text import printable

# Annotation files round to two decimals; only boxes that stick out further count as clipped.
ROUNDING_PX = 0.05
# Larger stated areas are nonsense, and might not fit float32.
LARGEST_AREA = 1e12
# Boxes that are cleaned at a time: they and what is computed from them stay in the processor's cache.
CHUNK = 2**14
SIZES_NOT_CHECKED = "image sizes taken from the annotations"
# The headers of all images are read of datasets up to this size; of larger ones those of a sample of this size.
MEASURED, SAMPLE = 20_000, 200
# No file name that has none of these, and does not begin with a slash, leaves the folder.
LEAD_ELSEWHERE = ("..", "\n/", "\\", ":", "\0")
# With more images, the files of their folders are listed.
LOOKED_UP_ONE_BY_ONE = 1_000


class RawBox(NamedTuple):
    """A box as the file has it.

    Attributes:
        xyxy: corners in pixels, or in fractions of the image for all boxes of a dataset; finite, not clipped.
        label: 0-based, or the name of the class; None or EVERY_CLASS for an ignored region of no class.
        annotation_id: the dataset's id; None for that of the image and its number in it.
        is_ignored: whether it is an ignored region.
        area: square pixels; None for the box's.
        place: where the file names its class, for messages.
    """

    xyxy: tuple[float, float, float, float]
    label: int | str | None
    annotation_id: int | str | None = None
    is_ignored: bool = False
    area: float | None = None
    place: str = ""


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
    # Coordinate by coordinate: several times as fast as row by row.
    left, top, right, bottom = given = np.ascontiguousarray(boxes.T)
    height, width = np.asarray(image_size, dtype=np.float64).T
    with np.errstate(over="ignore"):
        degenerate = (right - left <= smallest_side) | (bottom - top <= smallest_side)
    inside = np.maximum(given, 0.0)
    np.minimum(inside[::2], width, out=inside[::2])
    np.minimum(inside[1::2], height, out=inside[1::2])
    outside = ((inside[2] <= inside[0]) | (inside[3] <= inside[1])) & ~degenerate
    result = inside.astype(np.float32)
    # A sliver may be too thin for the resolution of float32.
    degenerate |= ((result[2] <= result[0]) | (result[3] <= result[1])) & ~outside
    moved = np.logical_or.reduce(np.abs(inside - given) > ROUNDING_PX)
    return CleanBoxes(np.ascontiguousarray(result.T), moved & ~outside & ~degenerate, outside, degenerate)


class RawImage(NamedTuple):
    """An image as the file has it.

    Attributes:
        file_name: in the image folder.
        place: where the annotations name it, for messages.
        boxes: of the annotations.
        stated_size: (height, width) according to the annotations; None where they do not say.
        image_id: the dataset's id; None for its number, from 1.
    """

    file_name: str
    place: str
    boxes: Sequence[RawBox]
    stated_size: tuple[int, int] | None = None
    image_id: int | str | None = None


def columns_of(images: Iterable[RawImage], class_names: Sequence[str] = (), folder: Path = Path()) -> Columns:
    """The columns of some images: classes become labels, and what has no id gets one.

    Args:
        images: as the file has them; where faults are collected, those with one are left out.
        class_names: by label.
        folder: of the images, for faults.

    Raises:
        DataError: a box is of another class; names its place and the nearest class.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    found, boxes, annotation_ids = list[RawImage](), list[RawBox](), list[int | str]()
    for number, image in enumerate(images, start=1):
        image_id = number if image.image_id is None else image.image_id
        with Entry(image_id, file=folder / image.file_name):
            own = [
                box if isinstance(box.label, int) else box._replace(label=_label(box, labels)) for box in image.boxes
            ]
            boxes += own
            annotation_ids += [
                f"{image_id}/{place}" if box.annotation_id is None else box.annotation_id
                for place, box in enumerate(own, start=1)
            ]
            found.append(image._replace(image_id=image_id, boxes=own))
    ids: list[Any] = [image.image_id for image in found]
    return Columns(
        [image.file_name for image in found], ids,
        np.array([image.stated_size or (0, 0) for image in found], dtype=np.int64).reshape(-1, 2),
        np.array([len(image.boxes) for image in found], dtype=np.int64),
        np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4),
        np.array([box.label for box in boxes], dtype=np.int64),
        np.array([box.is_ignored for box in boxes], dtype=np.bool_),
        np.array([box.area or 0.0 for box in boxes], dtype=np.float64), annotation_ids,
        lambda index: found[index].place,
    )  # fmt: skip


def _label(box: RawBox, labels: Mapping[str, int]) -> int:
    name = None if box.label is None else str(box.label)
    if name is not None and name not in labels:
        raise DataError(f"{box.place}: {unknown_name('class', name, labels)} Correct it or add the class.")
    return EVERY_CLASS if name is None else labels[name]


def _only(columns: Columns, kept: NDArray[np.bool_]) -> Columns:
    """Some of the images, (N,) bool, with their boxes."""
    if kept.all():
        return columns
    places, of_kept = np.flatnonzero(kept), kept[columns.image_of_box]
    return Columns(
        list(itertools.compress(columns.file_names, kept)), _take(columns.image_ids, kept), columns.sizes[kept],
        columns.box_counts[kept], columns.boxes_xyxy[of_kept], columns.labels[of_kept], columns.is_ignored[of_kept],
        columns.areas[of_kept], _take(columns.annotation_ids, of_kept),
        lambda index: columns.place(int(places[index])),
    )  # fmt: skip


def _take(ids: AnyIds, kept: NDArray[np.bool_]) -> AnyIds:
    return ids[kept] if isinstance(ids, np.ndarray) else list(itertools.compress(ids, kept.tolist()))


def _plain(ids: AnyIds, index: int) -> int | str:
    """One of the ids, as a plain number or text."""
    one = ids[index]
    return one if isinstance(one, str) else int(one)


def build(
    source: Path,
    folders: Sequence[Path],
    found: Sequence[RawImage] | Columns,
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    *,
    skip_missing: bool = False,
    in_fractions: bool = False,
    smallest_side: float = 0.0,
    field: str | None = "file_name",
) -> Records:
    """Records of images that are in their folder, of the size that is stated, with cleaned boxes.

    Args:
        source: the file or folder that was read, for messages.
        folders: that may hold the images, see `find_image_folder`.
        found: in the dataset.
        class_names: by label.
        category_ids: by label; by default the labels.
        skip_missing: leave out images whose file is missing, and count them.
        in_fractions: whether the boxes are in fractions of their image.
        smallest_side: see `clean_boxes`.
        field: name of the field that names an image, for messages; None for names of files that were found there.

    Raises:
        DataError: an image is missing, unreadable or of another size; or there is none; or a class is unknown.
    """
    counts = dict.fromkeys(COUNTED, 0)
    names = found.file_names if isinstance(found, Columns) else [image.file_name for image in found]
    folder = find_image_folder(folders, names)
    raw = found if isinstance(found, Columns) else columns_of(found, class_names, folder)
    is_sound = _are_inside(raw, field)
    is_sound &= _have_files(folder, raw, is_sound, skip_missing, counts)
    is_sound[_measure(folder, raw, np.flatnonzero(is_sound), counts)] = False
    raw = _only(raw, is_sound)
    if not len(raw.sizes):
        raise DataError(
            f"{source}: none of its images is in {folder} ({counts[IMAGES_SKIPPED]} missing); give the folder that "
            "holds the images"
        )
    if in_fractions:
        raw = raw._replace(boxes_xyxy=raw.boxes_xyxy * raw.sizes[raw.image_of_box][:, [1, 0, 1, 0]])
    return cleaned(source, folder, raw, class_names, category_ids, smallest_side, counts)


def cleaned(
    source: Path,
    folder: Path,
    raw: Columns,
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    smallest_side: float = 0.0,
    counts: dict[str, int] | None = None,
) -> Records:
    """Records of images that are known to be there, of the sizes given; see `build`."""
    counts = dict.fromkeys(COUNTED, 0) if counts is None else counts
    image_of_box = raw.image_of_box
    parts, area_parts = list[CleanBoxes](), list[NDArray[np.float32]]()
    for start in range(0, len(image_of_box) or 1, CHUNK):
        chunk = slice(start, start + CHUNK)
        sizes = np.take(raw.sizes, image_of_box[chunk], axis=0)
        parts.append(clean_boxes(raw.boxes_xyxy[chunk], sizes, smallest_side))
        area_parts.append(_areas(parts[-1], raw.areas[chunk]))
    clean = CleanBoxes(*map(np.concatenate, zip(*parts, strict=True)))
    changed = list(_changed(clean, folder, raw, image_of_box))
    kept = clean.kept
    columns = raw._replace(boxes_xyxy=clean.boxes_xyxy, areas=np.concatenate(area_parts))
    if not kept.all():
        image_of_box = image_of_box[kept]
        columns = columns._replace(
            box_counts=np.bincount(image_of_box, minlength=len(raw.sizes)), boxes_xyxy=columns.boxes_xyxy[kept],
            labels=raw.labels[kept], is_ignored=raw.is_ignored[kept], areas=columns.areas[kept],
            annotation_ids=_take(raw.annotation_ids, kept),
        )  # fmt: skip
    table, is_ignored = ImageTable(folder, columns), columns.is_ignored
    with_training_boxes = np.count_nonzero(np.bincount(image_of_box[~is_ignored]))
    negatives = len(table) - np.count_nonzero(np.bincount(image_of_box[table.labels != EVERY_CLASS]))
    for name, count in (
        (BOXES_CLIPPED, clean.clipped.sum()),
        (BOXES_OUTSIDE, clean.outside.sum()),
        (BOXES_DEGENERATE, clean.degenerate.sum()),
        (IGNORED_REGIONS, is_ignored.sum()),
        (IMAGES_WITHOUT_BOXES, negatives),
        (IMAGES_OF_IGNORED, len(table) - negatives - with_training_boxes),
    ):
        counts[name] += int(count)
    ids = range(len(class_names)) if category_ids is None else category_ids
    return Records(table, tuple(class_names), tuple(ids), source, counts, changed)


def _changed(clean: CleanBoxes, folder: Path, raw: Columns, image_of_box: NDArray[np.int64]) -> Iterator[ChangedBox]:
    """The boxes that are not as they were, in their order."""
    for index in np.flatnonzero(clean.clipped | ~clean.kept).tolist():
        image = int(image_of_box[index])
        what = BOXES_OUTSIDE if clean.outside[index] else BOXES_CLIPPED
        height, width = raw.sizes[image].tolist()
        yield ChangedBox(
            BOXES_DEGENERATE if clean.degenerate[index] else what, _plain(raw.image_ids, image),
            folder / raw.file_names[image], (height, width), _plain(raw.annotation_ids, index),
            tuple(raw.boxes_xyxy[index].tolist()), int(raw.labels[index]), bool(raw.is_ignored[index]),
        )  # fmt: skip


def _are_inside(raw: Columns, field: str | None) -> NDArray[np.bool_]:
    """Whether each file name stays in the image folder; others are an error."""
    result = np.ones(len(raw.sizes), dtype=np.bool_)
    joined = "\n".join(raw.file_names)
    if field is not None and (any(sign in joined for sign in LEAD_ELSEWHERE) or joined.startswith("/")):
        for index, name in enumerate(raw.file_names):
            with Entry(_plain(raw.image_ids, index)) as one:
                check_file_name(name, raw.place(index), field)
            result[index] = one.fault is None
    return result


def _have_files(
    folder: Path, raw: Columns, is_inside: NDArray[np.bool_], skip_missing: bool, counts: dict[str, int]
) -> NDArray[np.bool_]:
    """Whether each image has a file; those without are an error, or counted together with their boxes."""
    result, listed = is_inside.copy(), set[str]()
    if len(result) > LOOKED_UP_ONE_BY_ONE:
        listed = _listed(folder, raw.file_names)
        if listed.issuperset(raw.file_names):
            return result
    for index in np.flatnonzero(is_inside).tolist():
        name = raw.file_names[index]
        if name in listed or is_file(folder / name):
            continue
        result[index] = False
        if skip_missing:
            counts[IMAGES_SKIPPED] += 1
            counts[BOXES_OF_SKIPPED] += int(raw.box_counts[index])
            continue
        with Entry(_plain(raw.image_ids, index), file=folder / name):
            raise DataError(
                f"{raw.place(index)}: the image '{printable(name)}' is not in {folder}; put it there, or leave "
                "such images out with skip_missing (--skip-missing)",
                "image-missing",
            )
    return result


def _listed(folder: Path, names: Sequence[str]) -> set[str]:
    """What is in the folders that some names are in: much faster than looking for each."""
    found: set[str] = set()
    for parent in {name.rpartition("/")[0] for name in names if "/" in name} | {""}:
        with suppress(OSError):
            start = f"{parent}/" if parent else ""
            found.update(map(start.__add__, os.listdir(folder / parent)) if start else os.listdir(folder))
    return found


def _measure(folder: Path, raw: Columns, indices: NDArray[np.int64], counts: dict[str, int]) -> list[int]:
    """Compare the sizes stated with those of the files, and add those not stated; of many images of a sample.

    Returns:
        Indices of images to leave out, where faults are collected.
    """
    wrong = []
    checked = indices
    if len(indices) > MEASURED:
        is_sampled = np.arange(len(indices)) % (len(indices) // SAMPLE) == 0
        checked = indices[is_sampled | (raw.sizes[indices, 0] == 0)]
    if len(checked) < len(indices):
        counts[SIZES_NOT_CHECKED] = len(indices) - len(checked)
    for index in checked.tolist():
        path, stated = folder / raw.file_names[index], tuple(raw.sizes[index].tolist())
        with Entry(_plain(raw.image_ids, index), file=path) as one:
            image_size = measure(path, raw.place(index))
            raw.sizes[index] = image_size
            check_size(path, (stated[0], stated[1]) if stated[0] else image_size, image_size, raw.place(index))
        # Boxes made for the image before its rotation can be turned.
        if one.fault is not None and one.fault.code != "exif-rotation":
            wrong.append(index)
    return wrong


def _areas(clean: CleanBoxes, given: NDArray[np.float64]) -> NDArray[np.float32]:
    sides = clean.boxes_xyxy[:, 2:] - clean.boxes_xyxy[:, :2]
    box_areas = sides[:, 0] * sides[:, 1]
    # An object cannot cover more than its box, so clipping limits the area too.
    areas = np.minimum(given, np.where(clean.clipped, box_areas, LARGEST_AREA))
    result: NDArray[np.float32] = np.where(given > 0, areas, box_areas).astype(np.float32)
    return result
