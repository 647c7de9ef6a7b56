"""Boxes that cannot be, or hardly: outside, empty, cut, tiny, as large as the image, or twice on one object."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from efficientdet.boxes import pairwise_iou
from efficientdet.data.quality.columns import Columns, columns_of
from efficientdet.data.quality.findings import Box, Finding
from efficientdet.data.records import BOXES_CLIPPED, BOXES_DEGENERATE, BOXES_OUTSIDE, ChangedBox, ImageRecord, Records
from efficientdet.text import printable

# Two boxes that overlap by more are on one object.
SAME_OBJECT_IOU = 0.9
# A box with a side of fewer pixels than this is hardly meant.
TINY_SIDE = 3.0
# A box that covers more of the image than this is as large as it.
WHOLE_IMAGE = 0.99
# A box that loses more of its area than this beyond the edge of the image is worth a look.
LARGE_CUT = 0.1


def check_boxes(records: Records, split: str) -> Iterator[Finding]:
    """Findings on the boxes of a split.

    Args:
        records: the split.
        split: its name.
    """
    for change in records.changed:
        yield from _changed(change, split)
    for index in _worth_a_look(columns_of(records)):
        record = records.images[index]
        yield from _odd_sizes(record, split)
        yield from _repeated(record, records.class_names, split)


def _worth_a_look(columns: Columns) -> list[int]:
    """Indices of the images that have a tiny or a whole-image box, or two boxes that are nearly the same."""
    sides = columns.boxes_xyxy[:, 2:] - columns.boxes_xyxy[:, :2]
    images = columns.sizes[columns.image_of_box][:, ::-1]
    is_odd = (sides.min(1, initial=np.inf) < TINY_SIDE) | (sides / images >= WHOLE_IMAGE).all(1)
    odd = columns.image_of_box[is_odd & ~columns.is_ignored]
    found: list[int] = np.unique(np.concatenate([odd, *_with_near_boxes(columns)])).tolist()
    return found


def _with_near_boxes(columns: Columns) -> Iterator[NDArray[np.int64]]:
    """Images with two boxes whose edges differ by no more than the edges of boxes on one object can.

    Where the IoU is t, each edge differs by at most (1 - t) / t of a side. Boxes are in order of their left edge, so
    where none is near its neighbor at some distance in that order, none is at a larger one.
    """
    objects = np.flatnonzero(~columns.is_ignored)
    order = objects[np.lexsort((columns.boxes_xyxy[objects, 0], columns.image_of_box[objects]))]
    image, boxes = columns.image_of_box[order], columns.boxes_xyxy[order].astype(np.float64)
    reach = (boxes[:, 2:] - boxes[:, :2]) * (1 - SAME_OBJECT_IOU) / SAME_OBJECT_IOU + 1e-3
    for step in range(1, len(order)):
        apart = np.abs(boxes[step:] - boxes[:-step])
        is_near = (image[step:] == image[:-step]) & (apart[:, 0] <= reach[:-step, 0])
        if not is_near.any():
            return
        yield image[:-step][is_near & (apart <= np.tile(reach[:-step], 2)).all(1)]


def repeated_pairs(record: ImageRecord) -> list[tuple[int, int, float]]:
    """Pairs of an image's boxes that are on one object, ignored regions aside: (first, second, IoU), first < second."""
    objects = np.flatnonzero(~record.is_ignored)
    boxes = torch.from_numpy(record.boxes_xyxy[objects])
    overlap = np.triu(pairwise_iou(boxes, boxes).numpy(), 1)
    first, second = np.nonzero(overlap >= SAME_OBJECT_IOU)
    values = overlap[first, second]
    return list(zip(objects[first].tolist(), objects[second].tolist(), values.tolist(), strict=True))


def _changed(change: ChangedBox, split: str) -> Iterator[Finding]:
    width, height = change.image_size[::-1]
    x1, y1, x2, y2 = change.xyxy
    code, lost, side = None, 0.0, max(width, height)
    if change.what == BOXES_OUTSIDE:
        code, what = "box-outside", f"the box {_corners(change.xyxy)} is outside the image of {width}x{height} pixels"
    elif change.what == BOXES_DEGENERATE:
        code, what = (
            "box-empty",
            f"the box {_corners(change.xyxy)} has a width of {x2 - x1:g} and a height of {y2 - y1:g}",
        )
    elif change.what == BOXES_CLIPPED:
        inside = max(0.0, min(x2, width) - max(x1, 0)) * max(0.0, min(y2, height) - max(y1, 0))
        lost = 1 - inside / ((x2 - x1) * (y2 - y1))
        if lost > LARGE_CUT:
            what = f"{lost:.0%} of the box {_corners(change.xyxy)} lie beyond the image of {width}x{height} pixels"
            code = "box-cut"
    if code is not None:
        box: Box = (x1, y1, x2, y2)
        near = -side <= min(x1, y1) and max(x2, y2) <= 2 * side
        yield Finding(
            code,
            what,
            split,
            str(change.path),
            change.image_id,
            (change.annotation_id,),
            (box,) if near else (),
            weight=lost,
        )


def _odd_sizes(record: ImageRecord, split: str) -> Iterator[Finding]:
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    image = (record.width, record.height)
    for index in np.flatnonzero(~record.is_ignored & (sides.min(1) < TINY_SIDE)).tolist():
        width, height = sides[index].tolist()
        what = f"a box of {width:.3g}x{height:.3g} pixels"
        yield _of_boxes("box-tiny", what, record, split, [index], weight=-width * height)
    for index in np.flatnonzero(~record.is_ignored & (sides / image >= WHOLE_IMAGE).all(1)).tolist():
        yield _of_boxes("box-whole-image", "the box is as large as the image", record, split, [index])


def _repeated(record: ImageRecord, class_names: tuple[str, ...], split: str) -> Iterator[Finding]:
    for first, second, iou in repeated_pairs(record):
        names = [printable(class_names[record.labels[index]], 80) for index in (first, second)]
        if names[0] == names[1]:
            what = f"two boxes of '{names[0]}' with an IoU of {iou:.2f}"
            yield _of_boxes("box-repeated", what, record, split, [first, second], weight=iou)
        else:
            what = f"a box of '{names[0]}' and one of '{names[1]}' with an IoU of {iou:.2f}"
            yield _of_boxes("box-two-classes", what, record, split, [first, second], weight=iou)


def _of_boxes(
    code: str, what: str, record: ImageRecord, split: str, indices: list[int], weight: float = 0.0
) -> Finding:
    boxes: list[Box] = [tuple(map(float, record.boxes_xyxy[index])) for index in indices]  # type: ignore[misc]
    ids = tuple(record.annotation_ids[index] for index in indices)
    return Finding(code, what, split, str(record.path), record.image_id, ids, tuple(boxes), weight=weight)


def _corners(xyxy: tuple[float, float, float, float]) -> str:
    return f"({', '.join(f'{side:g}' for side in xyxy)})"
