"""Where a detection comes from: its pyramid level, anchor and classes, and the edges that carried it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from efficientdet.boxes import pairwise_iou
from efficientdet.errors import EfficientDetError, SettingError
from efficientdet.family import ModelSpec, level_sizes
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import ImageSource, read
from efficientdet.inference.detector import Detector
from efficientdet.inference.postprocess import BatchDetections, postprocess
from efficientdet.inference.settings import PostprocessOptions, PostprocessSettings
from efficientdet.research.edges import Edge, attribute, level_contributions, strongest_path
from efficientdet.settings import changed

SHOWN_CLASSES = 5


class NothingFoundError(EfficientDetError):
    """There is no detection to explain; the message gives the best score and the threshold."""


@dataclass(frozen=True)
class Anchor:
    """An anchor and its place in the pyramid.

    Attributes:
        level: pyramid level; its nominal stride is 2**level.
        stride: (vertical, horizontal) pixels of the network's input from cell to cell.
        row: row of the cell in the level's map.
        column: column of the cell.
        octave: number of its size within the level, from 0: the side grows by 2**(octave / octaves).
        aspect: (width, height) factors of its shape.
        box_xyxy: the anchor in pixels of the original image, around the middle of the cell; may reach beyond it.
    """

    level: int
    stride: tuple[float, float]
    row: int
    column: int
    octave: int
    aspect: tuple[float, float]
    box_xyxy: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """Where one detection comes from.

    Attributes:
        index: its number among the image's detections, best first, from 0.
        class_name: its class.
        score: its score, after NMS.
        logit: its class logit at its anchor, to which the edges contribute.
        box_xyxy: left, top, right, bottom in pixels of the original image.
        anchor: the anchor that the box was decoded from.
        anchor_iou: IoU of anchor and box.
        classes: probabilities of the best classes at this anchor: class_name, probability.
        suppressed: candidates of its class with a lower score that overlap it by more than the IoU threshold: those
            that hard NMS drops because of it.
        feature_network: name of the feature network.
        edges: every edge of every cell, in order of computation.
        levels: what the features of each level contribute as they enter the first cell: level, contribution, share.
        path: edges of the strongest path from the backbone's features to the anchor's level.
        path_share: product of the shares along it; those of all paths add up to 1.
    """

    index: int
    class_name: str
    score: float
    logit: float
    box_xyxy: tuple[float, ...]
    anchor: Anchor
    anchor_iou: float
    classes: list[dict[str, Any]]
    suppressed: int
    feature_network: str
    edges: tuple[Edge, ...]
    levels: list[dict[str, Any]]
    path: tuple[Edge, ...]
    path_share: float


def explain_detection(
    detector: Detector, image: ImageSource, index: int = 0, **settings: Unpack[PostprocessOptions]
) -> Explanation:
    """Find the level, the anchor and the edges of the feature network that carried one detection.

    Args:
        detector: its network runs in PyTorch, whatever the backend, with hooks meanwhile (see `attribute`).
        image: whatever `images.read` takes.
        index: number of the detection, best first, as `Detector.predict` orders them.
        **settings: fields of `PostprocessSettings` for this call.

    Returns:
        The explanation.

    Raises:
        NothingFoundError: no detection reaches the score threshold.
        SettingError: there is no detection of this number, a setting is unknown or out of range, or the detector runs
            an exported file.
        ImageError: the image cannot be read.
    """
    chosen = changed(detector.postprocess, settings)
    pixels = read(image)
    model, network, spec = detector.model, detector.model.feature_network, detector.info.spec
    canvas, scale = letterbox(pixels, detector.input_size(pixels.shape[:2]), detector.info.preprocessing)
    size = (canvas.shape[1], canvas.shape[2])
    anchors = model.anchors(size).cpu()
    with torch.inference_mode(False), torch.no_grad():
        features = model.backbone(torch.from_numpy(canvas)[None].to(detector.device))
        fused = network(features)
        class_logits = [level.cpu() for level in model.class_head(fused)]
        box_deltas = [level.cpu() for level in model.box_head(fused)]

    def detect(settings: PostprocessSettings) -> BatchDetections:
        scales, sizes = torch.tensor([scale]), torch.tensor([pixels.shape[:2]])
        return postprocess(class_logits, box_deltas, anchors, settings, scales=scales, image_sizes=sizes)

    found = detect(chosen)
    never = float("-inf")  # as `postprocess` does
    logits = torch.cat(class_logits, 1)[0].float().nan_to_num(nan=never, posinf=never, neginf=never)  # (A, K)
    _check_index(index, int(found.counts[0]), float(logits.max().sigmoid()), chosen.lowest_threshold)
    row, label, box = int(found.anchor_indices[0, index]), int(found.labels[0, index]), found.boxes_xyxy[0, index]
    candidates = detect(
        dataclasses.replace(chosen, nms="hard", iou_threshold=1.0, max_detections=chosen.max_candidates)
    )
    anchor = _anchor(spec, size, row, anchors[row], scale)
    edges = attribute(network, features, lambda maps: torch.cat(model.class_head(maps), 1)[0, row, label])
    path, path_share = strongest_path(network.topology, edges, anchor.level)
    return Explanation(
        index=index,
        class_name=detector.class_names[label],
        score=float(found.scores[0, index]),
        logit=float(logits[row, label]),
        box_xyxy=tuple(box.tolist()),
        anchor=anchor,
        anchor_iou=min(float(pairwise_iou(torch.tensor([anchor.box_xyxy]), box[None])), 1.0),
        classes=_best_classes(logits[row], detector.class_names),
        suppressed=_suppressed(candidates, row, label, chosen.iou_threshold),
        feature_network=network.topology.name,
        edges=edges,
        levels=level_contributions(network.topology, edges),
        path=path,
        path_share=path_share,
    )


def _check_index(index: int, count: int, best_score: float, score_threshold: float) -> None:
    if not count:
        raise NothingFoundError(
            f"no detection scores {score_threshold:g} or more; the best score is {best_score:.2g}: "
            "lower the score threshold, or choose another image"
        )
    if not 0 <= index < count:
        raise SettingError(f"detection {index}: the image has {count}, numbered 0 to {count - 1}")


def _best_classes(logits: Tensor, names: tuple[str, ...]) -> list[dict[str, Any]]:
    best = logits.sigmoid().topk(min(SHOWN_CLASSES, len(logits)))
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [{"class_name": names[label], "probability": probability} for probability, label in rows]


def _suppressed(candidates: BatchDetections, row: int, label: int, iou_threshold: float) -> int:
    """How many of the candidates, best first, come after that of an anchor and class and overlap it."""
    is_own = (candidates.anchor_indices[0] == row) & (candidates.labels[0] == label)
    own, count = int(is_own.int().argmax()), int(candidates.counts[0])
    boxes, labels = candidates.boxes_xyxy[0, own:count], candidates.labels[0, own:count]
    overlaps = pairwise_iou(boxes[:1], boxes[1:])[0] > iou_threshold
    return int((overlaps & (labels[1:] == label)).sum())


def _anchor(spec: ModelSpec, size: tuple[int, int], row: int, anchor_xyxy: Tensor, scale: float) -> Anchor:
    """The anchor of a row of `make_anchors`; `anchor_xyxy` is in pixels of the network's input, whose size is given."""
    level, sizes = spec.levels[0], level_sizes(size, spec.levels)
    while row >= (count := math.prod(sizes[0]) * spec.anchors_per_cell):
        row, level, sizes = row - count, level + 1, sizes[1:]
    height, width = sizes[0]
    places = np.unravel_index(row, (height, width, spec.octaves, len(spec.aspects)))
    y, x, octave, aspect = map(int, places)
    stride = (size[0] / height, size[1] / width)
    box = tuple((anchor_xyxy / scale).tolist())
    return Anchor(level, stride, y, x, octave, spec.aspects[aspect], box)
