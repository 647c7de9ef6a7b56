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

from efficientdet.boxes import box_areas, intersection, pairwise_iou
from efficientdet.data.quality.findings import Finding
from efficientdet.data.records import ImageRecord, Records
from efficientdet.detections import Detections
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
    split: str
    class_names: tuple[str, ...]
    objects: NDArray[np.int64]  # indices of the boxes that are no ignored regions
    labels: NDArray[np.int64]  # of the detections, the best score first
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    iou: NDArray[np.float32]  # (detections, objects)

    def name(self, label: int) -> str:
        return f"'{printable(self.class_names[label], 80)}'"

    def label(self, index: int) -> int:
        """The label of an object."""
        return int(self.record.labels[self.objects[index]])

    def size(self, index: int) -> int:
        """The class of size that an object belongs to."""
        x1, y1, x2, y2 = self.record.boxes_xyxy[self.objects[index]].tolist()
        share = (x2 - x1) * (y2 - y1) / (self.record.width * self.record.height)
        return int(np.searchsorted(SIZE_BOUNDS, math.sqrt(share)))

    def own_score(self, index: int) -> float:
        """The best score of the annotated class on an object; 0 without one."""
        is_own = (self.labels == self.label(index)) & (self.iou[:, index] >= ON_BOX)
        return float(self.scores[is_own].max(initial=0.0))

    def finding(
        self, code: str, what: str, loss: float, indices: Sequence[int] = (), more: Sequence[NDArray[np.float32]] = ()
    ) -> Finding:
        """A finding on some objects, and other boxes to show."""
        chosen, text = [int(self.objects[index]) for index in indices], f"{what}loss {loss:.1f})"
        return Finding.on(self.record, self.split, code, text, chosen, more, weight=round(loss, 3))


def label_findings(records: Records, split: str, detections: Iterable[Detections]) -> list[Finding]:
    """Likely label errors of a split, from the detections of each of its images, in order, with scores down to 0.05.

    Raises:
        DataError: the model does not know a class of the dataset.
    """
    findings: list[Finding] = []
    doubtful: list[tuple[int, Finding]] = []
    by_size: dict[int, list[float]] = {}
    for record, found in zip(records.images, detections, strict=True):
        image = _matched(record, found, records, split)
        findings += _missing(image)
        for index in range(len(image.objects)):
            own = image.own_score(index)
            by_size.setdefault(image.size(index), []).append(own)
            if own >= UNSEEN:
                continue
            finding = _other_class(image, index, own) or _badly_drawn(image, index)
            if finding is not None:
                findings.append(finding)
            else:
                what = f"annotated {image.name(image.label(index))}, for the model nothing (best score {own:.2f}, "
                finding = image.finding("label-doubtful", what, _loss(own), [index])
                doubtful.append((image.size(index), finding))
    competent = {size for size, scores in by_size.items() if float(np.median(scores)) >= COMPETENT}
    return findings + [finding for size, finding in doubtful if size in competent]


def _loss(probability: float) -> float:
    """Cross-entropy of what is annotated, in nats."""
    return -math.log(max(probability, SMALLEST_SCORE))


def _matched(record: ImageRecord, found: Detections, records: Records, split: str) -> _Image:
    own, boxes = records.labels_of(found.class_names)[found.labels], torch.from_numpy(found.boxes_xyxy)
    regions, objects = record.boxes_xyxy[record.is_ignored], np.flatnonzero(~record.is_ignored)
    kept = (own >= 0) & (found.scores >= SCORE_THRESHOLD)
    if len(regions):
        inside = (
            box_areas(intersection(boxes[:, None], torch.from_numpy(regions)))
            / box_areas(boxes).clamp(min=1e-6)[:, None]
        )
        kept &= (inside.amax(1) <= IGNORED_SHARE).numpy()
    iou = pairwise_iou(boxes[kept], torch.from_numpy(record.boxes_xyxy[objects])).numpy()
    return _Image(record, split, records.class_names, objects, own[kept], found.scores[kept], boxes[kept].numpy(), iou)


def _missing(image: _Image) -> Iterator[Finding]:
    free = image.iou.max(1, initial=0.0) < OFF_BOX
    taken: list[int] = []
    for found in np.flatnonzero(free & (image.scores >= SURE)).tolist():
        here = torch.from_numpy(image.boxes[[found]])
        if taken and float(pairwise_iou(here, torch.from_numpy(image.boxes[taken])).max()) > ON_BOX:
            continue
        taken.append(found)
        score = float(image.scores[found])
        what = f"no box where the model sees {image.name(image.labels[found])} with a score of {score:.2f} ("
        yield image.finding("label-missing", what, _loss(1 - score), more=[image.boxes[found]])


def _other_class(image: _Image, index: int, own: float) -> Finding | None:
    rivals = np.flatnonzero((image.labels != image.label(index)) & (image.iou[:, index] >= ON_OTHER_CLASS))
    if not len(rivals):
        return None
    rival = int(rivals[image.scores[rivals].argmax()])
    score = float(image.scores[rival])
    twins = image.record.labels[image.objects[image.iou[rival] >= ON_OTHER_CLASS]]
    if score < SURE or image.labels[rival] in twins:  # the other class is annotated too
        return None
    names = image.name(image.label(index)), image.name(image.labels[rival])
    what = f"annotated {names[0]}, for the model {names[1]} with a score of {score:.2f} ("
    return image.finding("label-class", what, _loss(own), [index])


def _badly_drawn(image: _Image, index: int) -> Finding | None:
    overlap = image.iou[:, index]
    is_near = (image.labels == image.label(index)) & (overlap >= NEAR_BOX) & (overlap < ON_BOX) & (image.scores >= SURE)
    near = np.flatnonzero(is_near & (image.iou.argmax(1) == index))
    if not len(near):
        return None
    best = int(near[image.scores[near].argmax()])
    iou, score = float(overlap[best]), float(image.scores[best])
    what = f"the model draws this {image.name(image.label(index))} differently: IoU {iou:.2f}, score {score:.2f} ("
    return image.finding("label-box", what, _loss(iou), [index], [image.boxes[best]])
