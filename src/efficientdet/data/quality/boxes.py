"""Boxes that cannot be, or hardly: outside, empty, cut, tiny, as large as the image, or twice on one object."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from efficientdet.boxes import aligned_iou
from efficientdet.data.quality.findings import Finding
from efficientdet.data.records import BOXES_CLIPPED, BOXES_DEGENERATE, BOXES_OUTSIDE, ChangedBox, ImageTable, Records
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
    table = records.table
    sides, images = table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2], table.sizes[table.image_of_box][:, ::-1]
    is_object = ~table.is_ignored
    for index in np.flatnonzero(is_object & (sides < TINY_SIDE).any(1)).tolist():
        width, height = sides[index].tolist()
        what = f"a box of {width:.3g}x{height:.3g} pixels"
        yield _of_boxes("box-tiny", what, table, split, index, weight=-width * height)
    for index in np.flatnonzero(is_object & (sides / images >= WHOLE_IMAGE).all(1)).tolist():
        yield _of_boxes("box-whole-image", "the box is as large as the image", table, split, index)
    for first, second, iou in repeated_pairs(table):
        names = [printable(records.class_names[table.labels[index]], 80) for index in (first, second)]
        is_same = table.labels[first] == table.labels[second]
        what = f"two boxes of '{names[0]}'" if is_same else f"a box of '{names[0]}' and one of '{names[1]}'"
        code = "box-repeated" if is_same else "box-two-classes"
        yield _of_boxes(code, f"{what} with an IoU of {iou:.2f}", table, split, first, second, weight=iou)


def repeated_pairs(table: ImageTable) -> Iterator[tuple[int, int, float]]:
    """Pairs of boxes that are on one object of an image, ignored regions aside.

    Yields:
        (first, second, IoU): indices of boxes, first < second.
    """
    objects = np.flatnonzero(~table.is_ignored)
    image, boxes = table.image_of_box[objects], torch.from_numpy(table.boxes_xyxy[objects])
    for step in range(1, len(objects)):
        pairs = np.flatnonzero(image[step:] == image[:-step])  # each with the box so many places further on
        if not len(pairs):
            return
        iou = aligned_iou(boxes[pairs], boxes[pairs + step]).numpy()
        for place in np.flatnonzero(iou >= SAME_OBJECT_IOU).tolist():
            first = pairs[place]
            yield int(objects[first]), int(objects[first + step]), float(iou[place])


def _changed(change: ChangedBox, split: str) -> Iterator[Finding]:
    height, width = change.image_size
    x1, y1, x2, y2 = change.xyxy
    corners = f"({', '.join(f'{side:g}' for side in change.xyxy)})"
    size, lost = f"{width}x{height} pixels", 0.0
    if change.what == BOXES_CLIPPED:
        inside = max(0.0, min(x2, width) - max(x1, 0)) * max(0.0, min(y2, height) - max(y1, 0))
        lost = 1 - inside / ((x2 - x1) * (y2 - y1))
        if lost <= LARGE_CUT:
            return
    code, what = {
        BOXES_OUTSIDE: ("box-outside", f"the box {corners} is outside the image of {size}"),
        BOXES_DEGENERATE: ("box-empty", f"the box {corners} has a width of {x2 - x1:g} and a height of {y2 - y1:g}"),
        BOXES_CLIPPED: ("box-cut", f"{lost:.0%} of the box {corners} lie beyond the image of {size}"),
    }[change.what]
    # One that is far away is not drawn.
    is_near = -max(width, height) <= min(x1, y1) and max(x2, y2) <= 2 * max(width, height)
    boxes = (change.xyxy,) if is_near else ()
    place = (split, str(change.path), change.image_id, (change.annotation_id,))
    yield Finding(code, what, *place, boxes, weight=lost)


def _of_boxes(code: str, what: str, table: ImageTable, split: str, *indices: int, weight: float = 0.0) -> Finding:
    image = int(np.searchsorted(table.starts, indices[0], side="right")) - 1
    boxes = [index - int(table.starts[image]) for index in indices]
    return Finding.on(table[image], split, code, what, boxes, weight=weight)
