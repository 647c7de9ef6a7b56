"""Likely label errors: where a model is sure of something else than the annotations say.

Each gets a loss, the cross-entropy of what is annotated under the model's scores, in nats, which orders them; as in
ObjectLab (Tkachenko et al. 2023), objects without a box, boxes of another class, badly drawn boxes and boxes on nothing
are told apart. A model that was trained on the same annotations has learned some of the errors, so detections of models
that did not see the image find more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from efficientdet.boxes import pairwise_iou
from efficientdet.data.quality.findings import Box, Finding
from efficientdet.data.records import ImageRecord, Records
from efficientdet.detections import Detections
from efficientdet.errors import DataError
from efficientdet.text import printable

# A score from which the model is sure.
SURE = 0.6
# A score below which the model does not see the annotated class.
UNSEEN = 0.1
# IoU of a detection with the box that it is on; with one that is drawn badly; and with nothing.
ON_BOX, NEAR_BOX, OFF_BOX = 0.5, 0.2, 0.1
# A detection of another class must be on the box as exactly as this.
ON_OTHER_CLASS = 0.7
# Boxes on nothing are reported among boxes of a size at whose median the model reaches this score.
COMPETENT = 0.4
# Bounds between sizes, as the square root of a box's share of its image's area.
SIZE_BOUNDS = (0.03, 0.06, 0.12, 0.25, 0.5)
# A detection with more of its area than this in an ignored region is left alone.
IGNORED_SHARE = 0.5
SMALLEST_SCORE = 1e-3
# Scores below this are not needed.
SCORE_THRESHOLD = 0.05


class _Image(NamedTuple):
    """An image's objects and what the model found on it, labels those of the records."""

    record: ImageRecord
    objects: NDArray[np.int64]  # indices of the boxes that are no ignored regions
    labels: NDArray[np.int64]  # of the detections
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    iou: NDArray[np.float32]  # (detections, objects)


def label_findings(records: Records, split: str, detections: Iterable[Detections]) -> list[Finding]:
    """Likely label errors of a split.

    Args:
        records: the split.
        split: its name.
        detections: of each of its images, in order, with scores down to 0.05.

    Raises:
        DataError: the model does not know a class of the dataset.
    """
    findings: list[Finding] = []
    doubtful: list[tuple[int, float, Finding]] = []
    by_size: dict[int, list[float]] = {}
    for record, found in zip(records.images, detections, strict=True):
        image = _matched(record, found, _labels(found.class_names, records))
        findings += _missing(image, records, split)
        for index in range(len(image.objects)):
            own = _own_score(image, index)
            size = _size(record, int(image.objects[index]))
            by_size.setdefault(size, []).append(own)
            finding = _other_class(image, index, own, records, split) or _badly_drawn(image, index, own, records, split)
            if finding is not None:
                findings.append(finding)
            elif own < UNSEEN:
                doubtful.append((size, own, _doubtful(image, index, own, records, split)))
    competent = {size for size, scores in by_size.items() if float(np.median(scores)) >= COMPETENT}
    return findings + [finding for size, _, finding in doubtful if size in competent]


def _labels(class_names: Sequence[str], records: Records) -> NDArray[np.int64]:
    """The records' label of each of the model's; -1 for classes that the dataset does not have."""
    unknown = [name for name in records.class_names if name not in class_names]
    if unknown:
        raise DataError(
            f"{records.source}: the detector does not know its classes {printable(unknown)}; it knows "
            f"{printable(list(class_names))}. Use weights that were trained on these classes, or folds"
        )
    ours = {name: label for label, name in enumerate(records.class_names)}
    return np.array([ours.get(name, -1) for name in class_names], dtype=np.int64)


def _matched(record: ImageRecord, found: Detections, labels: NDArray[np.int64]) -> _Image:
    own = labels[found.labels]
    regions = record.boxes_xyxy[record.is_ignored]
    kept = (own >= 0) & (found.scores >= SCORE_THRESHOLD) & (_share_inside(found.boxes_xyxy, regions) <= IGNORED_SHARE)
    objects = np.flatnonzero(~record.is_ignored)
    boxes = found.boxes_xyxy[kept]
    iou = pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(record.boxes_xyxy[objects])).numpy()
    return _Image(record, objects, own[kept], found.scores[kept], boxes, iou)


def _share_inside(boxes: NDArray[np.float32], regions: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) the largest share of each box's area in one of the regions."""
    if not len(regions) or not len(boxes):
        return np.zeros(len(boxes), dtype=np.float32)
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
    shares: NDArray[np.float32] = (np.clip(high - low, 0, None).prod(2) / areas[:, None]).max(1)
    return shares


def _own_score(image: _Image, index: int) -> float:
    """The best score of the annotated class on a box; 0 without one."""
    label = image.record.labels[image.objects[index]]
    scores = image.scores[(image.labels == label) & (image.iou[:, index] >= ON_BOX)]
    return float(scores.max()) if len(scores) else 0.0


def _missing(image: _Image, records: Records, split: str) -> Iterator[Finding]:
    free = image.iou.max(1, initial=0.0) < OFF_BOX
    taken: list[int] = []
    for found in np.flatnonzero(free & (image.scores >= SURE)).tolist():  # the best score comes first
        here = torch.from_numpy(image.boxes[[found]])
        if taken and float(pairwise_iou(here, torch.from_numpy(image.boxes[taken])).max()) > ON_BOX:
            continue
        taken.append(found)
        score = float(image.scores[found])
        name = records.class_names[image.labels[found]]
        loss = -math.log(max(1 - score, SMALLEST_SCORE))
        what = f"no box where the model sees '{printable(name, 80)}' with a score of {score:.2f} (loss {loss:.1f})"
        yield _finding("label-missing", what, image, split, (), [image.boxes[found]], loss)


def _other_class(image: _Image, index: int, own: float, records: Records, split: str) -> Finding | None:
    label = int(image.record.labels[image.objects[index]])
    rivals = np.flatnonzero((image.labels != label) & (image.iou[:, index] >= ON_OTHER_CLASS))
    if own >= UNSEEN or not len(rivals):
        return None
    rival = int(rivals[image.scores[rivals].argmax()])
    score = float(image.scores[rival])
    twin = image.record.labels[image.objects[image.iou[rival] >= ON_OTHER_CLASS]]
    if score < SURE or int(image.labels[rival]) in twin:  # the other class is annotated too
        return None
    names = [printable(records.class_names[number], 80) for number in (label, image.labels[rival])]
    loss = -math.log(max(own, SMALLEST_SCORE))
    what = f"annotated '{names[0]}', for the model '{names[1]}' with a score of {score:.2f} (loss {loss:.1f})"
    return _finding("label-class", what, image, split, (index,), [], loss)


def _badly_drawn(image: _Image, index: int, own: float, records: Records, split: str) -> Finding | None:
    label = int(image.record.labels[image.objects[index]])
    overlap = image.iou[:, index]
    is_near = (image.labels == label) & (overlap >= NEAR_BOX) & (overlap < ON_BOX) & (image.scores >= SURE)
    near = np.flatnonzero(is_near & (image.iou.argmax(1) == index))
    if own >= UNSEEN or not len(near):
        return None
    best = int(near[image.scores[near].argmax()])
    iou, loss = float(overlap[best]), -math.log(float(overlap[best]))
    name = printable(records.class_names[label], 80)
    score = float(image.scores[best])
    what = f"the model draws this '{name}' differently: IoU {iou:.2f}, score {score:.2f} (loss {loss:.1f})"
    return _finding("label-box", what, image, split, (index,), [image.boxes[best]], loss)


def _doubtful(image: _Image, index: int, own: float, records: Records, split: str) -> Finding:
    name = printable(records.class_names[image.record.labels[image.objects[index]]], 80)
    loss = -math.log(max(own, SMALLEST_SCORE))
    what = f"annotated '{name}', for the model nothing (best score {own:.2f}, loss {loss:.1f})"
    return _finding("label-doubtful", what, image, split, (index,), [], loss)


def _size(record: ImageRecord, box: int) -> int:
    """The class of size that a box belongs to."""
    width, height = (record.boxes_xyxy[box, 2:] - record.boxes_xyxy[box, :2]).tolist()
    return int(np.searchsorted(SIZE_BOUNDS, math.sqrt(width * height / (record.width * record.height))))


def _finding(
    code: str,
    what: str,
    image: _Image,
    split: str,
    indices: Sequence[int],
    more: Sequence[NDArray[np.float32]],
    loss: float,
) -> Finding:
    record = image.record
    chosen = [int(image.objects[index]) for index in indices]
    boxes: list[Box] = [tuple(map(float, box)) for box in (*record.boxes_xyxy[chosen], *more)]  # type: ignore[misc]
    ids = tuple(record.annotation_ids[index] for index in chosen)
    return Finding(code, what, split, str(record.path), record.image_id, ids, tuple(boxes), weight=round(loss, 3))
