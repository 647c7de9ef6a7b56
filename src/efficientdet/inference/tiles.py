"""Large images in overlapping tiles: small objects keep their pixels, and the whole image still shows the large ones.

The whole image and each tile are predicted like images of their own. What they found is merged in two steps: what a
tile's edge has cut gives way to the whole object that another tile or the whole image has found, or is joined with the
rest of it; then NMS runs over everything.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from efficientdet.boxes import aligned_iou, intersection
from efficientdet.detections import Detections
from efficientdet.errors import ImageError
from efficientdet.images import tiles
from efficientdet.images.read import ImageSource, read
from efficientdet.inference.nms import best_detections, fuse_boxes
from efficientdet.inference.settings import PostprocessSettings

# A box that ends within this share of a tile's side from the edge is taken for cut by it, since a detector seldom puts
# a box exactly onto the edge.
NEAR_EDGE = 0.01
Predict = Callable[[Iterable[ImageSource]], Iterator[Detections | ImageError]]


def predict_in_tiles(
    sources: Iterable[ImageSource], predict: Predict, settings: PostprocessSettings
) -> Iterator[Detections | ImageError]:
    """Find objects in images and in their tiles; `predict` finds them without tiles.

    Yields:
        For each image its detections, or the error for which it cannot be read.
    """
    for source in sources:
        try:
            image = read(source)
        except ImageError as error:
            yield error.with_traceback(None)
            continue
        size = image.shape[:2]
        side = settings.tiles or max(size)
        places = tiles.cut(size, side, settings.overlap) if max(size) > side else []
        views = [(0, 0, size[1], size[0]), *places]
        found = []
        for one in predict([image[top:bottom, left:right] for left, top, right, bottom in views]):
            if isinstance(one, ImageError):
                raise one
            found.append(one)
        merged = merge_tiles(found, views, settings) if places else found[0]
        name = str(source) if isinstance(source, (str, os.PathLike)) else None
        yield dataclasses.replace(merged, image=image, source=name)


def merge_tiles(
    found: Sequence[Detections], views: Sequence[tuple[int, int, int, int]], settings: PostprocessSettings
) -> Detections:
    """Detections of an image from those of its parts.

    Args:
        found: of each part, boxes in its own pixels; the first part is the whole image.
        views: left, top, right, bottom of each part, pixels of the image.
        settings: of NMS within each class: hard here, since each part has had its own NMS already; `wbf` then fuses
            the boxes of an object.

    Returns:
        The detections, best first, at most `max_detections`. The image is not kept.
    """
    counts = torch.tensor([len(one) for one in found])
    seen = torch.tensor(views, dtype=torch.float32).repeat_interleave(counts, 0)  # (N, 4): the part of each box
    boxes = torch.cat([torch.from_numpy(one.boxes_xyxy) for one in found]) + seen[:, :2].repeat(1, 2)
    scores = torch.cat([torch.from_numpy(one.scores) for one in found])
    labels = torch.cat([torch.from_numpy(one.labels) for one in found])
    boxes, scores, keep = _join_parts(boxes, scores, labels, seen, seen.new_tensor(views[0]), settings.iou_threshold)
    order = scores.where(keep, -1.0).argsort(descending=True, stable=True)[: int(keep.sum())]
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    top, chosen = best_detections(boxes[None], scores[None], labels[None], dataclasses.replace(settings, nms="hard"))
    kept = chosen[top > 0]
    merged, best, classes = boxes[kept], scores[kept], labels[kept]
    if settings.nms == "wbf" and len(merged):
        every = boxes[None], scores[None], labels[None]
        merged = fuse_boxes(merged[None], classes[None], *every, settings.iou_threshold)[0]
    whole = dataclasses.replace(
        found[0], boxes_xyxy=merged.numpy(), scores=best.numpy(), labels=classes.numpy(), image=None
    )
    return whole[: settings.max_detections]


def _join_parts(
    boxes: Tensor, scores: Tensor, labels: Tensor, seen: Tensor, whole: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and scores in which parts of an object are joined, and which of them to keep.

    Two boxes are of one object if they agree (by IoU) on what both their tiles saw of it. A part is dropped for a whole
    box with which it agrees. Parts that agree with each other only become the box around all, with the best score.
    """
    near = NEAR_EDGE * (seen[:, 2:] - seen[:, :2]).repeat(1, 2)
    is_cut = (((boxes - seen).abs() <= near) & ((seen - whole).abs() > 0)).any(1)
    keep = torch.ones_like(is_cut)
    parts, wholes = is_cut.nonzero()[:, 0], (~is_cut).nonzero()[:, 0]

    def same_class(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (labels[first][:, None] == labels[second][None]).nonzero(as_tuple=True)
        return first[rows], second[columns]

    part, other = same_class(parts, wholes)
    covered = aligned_iou(boxes[part], intersection(boxes[other], seen[part])) > threshold
    keep[part[covered]] = False
    parts = parts[keep[parts]]
    first, second = same_class(parts, parts)
    agree = aligned_iou(intersection(boxes[first], seen[second]), intersection(boxes[second], seen[first])) > threshold
    first, second = first[agree], second[agree]
    while len(first):  # until what has been joined says nothing new
        joined, best = boxes.clone(), scores.clone()
        rows = first[:, None].expand(-1, 2)
        joined[:, :2].scatter_reduce_(0, rows, boxes[second, :2], "amin")
        joined[:, 2:].scatter_reduce_(0, rows, boxes[second, 2:], "amax")
        best.scatter_reduce_(0, first, scores[second], "amax")
        if torch.equal(joined, boxes) and torch.equal(best, scores):
            break
        boxes, scores = joined, best
    return boxes, scores, keep
