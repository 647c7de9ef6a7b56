"""Boxes that cannot be, or hardly; classes that are unused, rare or shifted; and splits that do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

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


TRAIN, VAL = "train", "val"
# Fewer boxes than this are too few to learn a class from.
RARE = 10
# The most frequent class has this many times as many boxes as the rarest.
IMBALANCE = 20
BACKGROUND_NAMES = ("background", "__background__", "_background_", "bg", "none")
# Names listed in one finding.
MOST_NAMES = 8


def check_boxes(records: Records, split: str) -> Iterator[Finding]:
    """Findings on the boxes of a split."""
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
        pairs = np.flatnonzero(image[step:] == image[:-step])  # each with the box that is `step` places further on
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


def check_classes(splits: Mapping[str, Records]) -> Iterator[Finding]:
    """Findings on the classes of a dataset and on its splits."""
    yield from _splits(splits)
    mismatches = list(_mismatches(splits))
    if mismatches:
        yield from mismatches
        return  # counts by label would compare different classes
    first = next(iter(splits.values()))
    counts = {split: records.boxes_by_class() for split, records in splits.items()}
    total = np.sum(list(counts.values()), axis=0)
    source = str(first.source)
    if total.sum() == 0:
        return
    yield from _shifted(first, total)
    unused = [name for name, count in zip(first.class_names, total.tolist(), strict=True) if not count]
    for name in unused:
        if name.strip().lower() in BACKGROUND_NAMES:
            yield Finding("class-background", f"'{printable(name, 80)}' is listed as a class", file=source)
    if unused:
        what = f"{len(unused)} of {len(total)} classes have no box: {_names(unused)}"
        yield Finding("class-unused", what, file=source, count=len(unused))
    yield from _learned(first.class_names, counts, source)


def _splits(splits: Mapping[str, Records]) -> Iterator[Finding]:
    train = splits.get(TRAIN)
    if train is not None:
        if train.training_boxes == 0:
            yield Finding("no-boxes", f"none of its {len(train)} images has a box", TRAIN, str(train.source))
    for split, records in splits.items():
        empty = records.table.negatives
        if empty and records.training_boxes:
            what = f"{empty} of {len(records)} images ({empty / len(records):.0%}) have no box"
            yield Finding("images-empty", what, split, str(records.source), count=empty)


def _mismatches(splits: Mapping[str, Records]) -> Iterator[Finding]:
    first_split = next(iter(splits))
    first = splits[first_split]
    ours = dict(zip(first.category_ids, first.class_names, strict=True))
    for split, records in splits.items():
        theirs = dict(zip(records.category_ids, records.class_names, strict=True))
        if theirs == ours:
            continue
        shift = records.category_ids[0] - first.category_ids[0]
        if shift and theirs == {number + shift: name for number, name in ours.items()}:
            what = f"the ids of {first_split} are those of {split} shifted by {shift}: one counts from another number"
            yield Finding("class-shift", what, split, str(records.source))
        else:
            differing = [f"{number} is '{ours.get(number, '-')}' in {first_split} and '{theirs.get(number, '-')}' here"
                         for number in sorted({*ours, *theirs}) if ours.get(number) != theirs.get(number)]  # fmt: skip
            what = f"{len(differing)} category ids differ: {printable('; '.join(differing[:4]), 400)}"
            yield Finding("class-mismatch", what, split, str(records.source), count=len(differing))


def _shifted(records: Records, total: NDArray[np.int64]) -> Iterator[Finding]:
    """The first class unused and all others used, as where ids that count from 1 are read as counting from 0."""
    used = total > 0
    name = records.class_names[0]
    if len(total) > 2 and not used[0] and used[1:].all() and name.strip().lower() not in BACKGROUND_NAMES:
        what = f"the first class, '{printable(name, 80)}', has no box and every other class has"
        yield Finding("class-first-unused", what, file=str(records.source))


def _learned(names: tuple[str, ...], counts: Mapping[str, NDArray[np.int64]], source: str) -> Iterator[Finding]:
    train, val = counts.get(TRAIN), counts.get(VAL)
    if train is None:
        return
    total = np.sum(list(counts.values()), axis=0)
    for label in np.flatnonzero((train == 0) & (total > 0)).tolist():
        others = ", ".join(f"{split} {count[label]}" for split, count in counts.items() if count[label])
        what = f"'{printable(names[label], 80)}' has no box in train (boxes in {others})"
        yield Finding("class-untrained", what, file=source, count=int(total[label]))
    if val is not None:
        unmeasured = [names[label] for label in np.flatnonzero((val == 0) & (train > 0)).tolist()]
        if unmeasured:
            what = f"{len(unmeasured)} classes have boxes in train and none in val: {_names(unmeasured)}"
            yield Finding("class-unmeasured", what, VAL, source, count=len(unmeasured))
    rare = np.flatnonzero((train > 0) & (train < RARE))
    if len(rare):
        rarest_first = [names[label] for label in rare[train[rare].argsort(kind="stable")].tolist()]
        what = f"{len(rare)} classes have fewer than {RARE} boxes in train, at least {train[rare].min()}: "
        yield Finding("class-rare", what + _names(rarest_first), TRAIN, source, count=len(rare))
    used = train[train > 0]
    if len(used) > 1 and used.max() >= IMBALANCE * used.min():
        most, least = names[int(train.argmax())], names[int(np.where(train > 0, train, train.max() + 1).argmin())]
        what = f"'{printable(most, 80)}' has {used.max()} boxes in train, '{printable(least, 80)}' {used.min()}"
        yield Finding("class-imbalance", what, TRAIN, source)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(f"'{printable(name, 80)}'" for name in names[:MOST_NAMES]) + more
