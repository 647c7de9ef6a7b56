"""How a network's nodes weigh their inputs, and for one detection: which level, anchor and edge carried it."""

from __future__ import annotations

import dataclasses
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.boxes import clip_boxes, decode_deltas, pairwise_iou
from efficientdet.errors import EfficientDetError, SettingError
from efficientdet.family import ModelSpec
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import ImageSource, read
from efficientdet.inference.detector import Detector
from efficientdet.inference.postprocess import postprocess, select_candidates
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.network.anchors import level_sizes
from efficientdet.network.fusion import Fusion, GlobalAttention
from efficientdet.network.pyramid import FeatureNetwork, NodeModule
from efficientdet.network.topology import Topology
from efficientdet.research.attribution import Edge, attribute, level_contributions, strongest_path
from efficientdet.research.draw_topology import input_shares
from efficientdet.settings import changed

# Boxes (pixels) and scores that differ by less come from the same candidate.
SAME = 1e-4
SHOWN_CLASSES = 5


class NothingFoundError(EfficientDetError):
    """There is no detection to explain: the message gives the best score and the threshold."""


@dataclass(frozen=True)
class AnchorPlace:
    """Where an anchor stands.

    Attributes:
        level: pyramid level; its nominal stride is 2**level.
        stride: (vertical, horizontal) pixels of the network's input from cell to cell.
        row: of the cell in the level's map.
        column: of the cell.
        octave: number of its size within the level, from 0: the side grows by 2**(octave / octaves).
        aspect: (width, height) factors of its shape.
        box_xyxy: the anchor in pixels of the original picture; may reach beyond it.
        cell_xyxy: the cell in pixels of the original picture.
    """

    level: int
    stride: tuple[float, float]
    row: int
    column: int
    octave: int
    aspect: tuple[float, float]
    box_xyxy: tuple[float, ...]
    cell_xyxy: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """Where one detection comes from.

    Attributes:
        index: its place among the picture's detections, best first.
        class_name: its class.
        score: as predicted, after suppression.
        logit: the class logit of its anchor: what the contributions are of.
        box_xyxy: left, top, right, bottom in pixels of the original picture.
        anchor: the anchor that became the box.
        anchor_iou: overlap of anchor and box.
        classes: the best class names and probabilities at this anchor, this detection's own among them.
        suppressed: worse candidates of its class that score at least the threshold and overlap it by more than the IoU
            threshold: what hard NMS drops in its favor.
        topology: one cell of the feature network.
        edges: every edge of every cell, in order of computation.
        levels: (contribution, share) of each level's features as they enter the first cell, by level.
        path: the edges of the strongest path, from the backbone's features to the fused map of the anchor's level.
        path_share: product of the shares along it; over all paths, these add up to 1.
        image: (H, W, 3) uint8 RGB, the picture.
    """

    index: int
    class_name: str
    score: float
    logit: float
    box_xyxy: tuple[float, ...]
    anchor: AnchorPlace
    anchor_iou: float
    classes: tuple[tuple[str, float], ...]
    suppressed: int
    topology: Topology
    edges: tuple[Edge, ...]
    levels: dict[int, tuple[float, float]]
    path: tuple[Edge, ...]
    path_share: float
    image: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels and the graph as plain types."""
        left_out = {"image", "topology", "levels", "classes"}
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        classes = [{"class_name": name, "probability": probability} for name, probability in self.classes]
        levels = [
            {"level": level, "contribution": part, "share": share} for level, (part, share) in self.levels.items()
        ]
        return fields | {"classes": classes, "levels": levels, "feature_network": self.topology.name}


def fusion_rows(network: FeatureNetwork) -> list[dict[str, Any]]:
    """How every node of every cell weighs its inputs.

    Returns:
        One row an edge: cell, node, level, input; weight, the factor of the map (averaged over channels where each has
        its own); share, the mean |weight| among those of the node's inputs; is_learned, False for plain sums. The two
        inputs that NAS-FPN pools by global attention are one row, for they share one weight; how the pooling mixes
        them depends on the picture and is not learned here.
    """
    rows: list[dict[str, Any]] = []
    for cell, nodes in enumerate(network.cells):
        for module in nodes.children():
            if isinstance(module, NodeModule) and isinstance(module.fuse, Fusion):
                rows += _node_rows(cell, module, module.fuse)
    return rows


def _node_rows(cell: int, module: NodeModule, fuse: Fusion) -> list[dict[str, Any]]:
    inputs = list(module.node.inputs)
    if isinstance(fuse, GlobalAttention):
        inputs[-2:] = [" & ".join(inputs[-2:])]
    shares, weights = input_shares(fuse), fuse.normalized_weights()
    if shares is None or weights is None:
        factors, shares = [1.0] * len(inputs), [1 / len(inputs)] * len(inputs)
    else:
        factors = weights.detach().reshape(len(inputs), -1).mean(1).tolist()
    place = {"cell": cell, "node": module.node.name, "level": module.node.level}
    return [
        {**place, "input": name, "weight": factor, "share": share, "is_learned": weights is not None}
        for name, factor, share in zip(inputs, factors, shares, strict=True)
    ]


def explain_detection(detector: Detector, picture: ImageSource, index: int = 0, **settings: Any) -> Explanation:
    """Say which level, anchor and edges of the feature network carried one detection.

    Args:
        detector: its model is hooked meanwhile (see `attribute`), then left as it was.
        picture: any source that `images.read` takes.
        index: which detection, best first, as `Detector.predict` orders them.
        **settings: fields of `PostprocessSettings` for this call.

    Returns:
        The explanation.

    Raises:
        NothingFoundError: nothing scores as much as the threshold.
        SettingError: there is no detection of this index, or a setting is unknown or out of range.
        ImageError: the picture cannot be read.
    """
    chosen = changed(detector.postprocess, settings)
    image = read(picture)
    model, spec, size = detector.model, detector.info.spec, detector.image_size
    canvas, scale = letterbox(image, size, detector.info.preprocessing)
    with torch.inference_mode(False), torch.no_grad():
        pixels = torch.from_numpy(canvas)[None].to(detector.device, memory_format=torch.channels_last)
        features = model.backbone(pixels)
        pyramid = model.feature_network(features)
        logits = torch.cat(model.class_head(pyramid), 1)
        deltas = torch.cat(model.box_head(pyramid), 1).float().cpu()
    never = float("-inf")  # what is not finite is nothing found, as in `postprocess`
    clean = logits.float().nan_to_num(nan=never, posinf=never, neginf=never).cpu()
    anchors = model.anchors(size).cpu()
    found = _find(clean, deltas, anchors, scale, (image.shape[0], image.shape[1]), index, chosen)
    anchor = _anchor_place(spec, size, found.anchor, anchors[found.anchor], scale)

    def logit_of(fused: list[Tensor]) -> Tensor:
        return torch.cat(model.class_head(fused), 1)[0, found.anchor, found.label]

    network = model.feature_network
    edges = attribute(network, features, logit_of)
    path, path_share = strongest_path(network.topology, edges, anchor.level)
    box = torch.tensor([found.box])
    return Explanation(
        index=index,
        class_name=detector.class_names[found.label],
        score=found.score,
        logit=float(clean[0, found.anchor, found.label]),
        box_xyxy=found.box,
        anchor=anchor,
        anchor_iou=float(pairwise_iou(torch.tensor([anchor.box_xyxy]), box)),
        classes=_best_classes(clean[0, found.anchor], detector.class_names),
        suppressed=found.suppressed,
        topology=network.topology,
        edges=edges,
        levels=level_contributions(network.topology, edges),
        path=path,
        path_share=path_share,
        image=image,
    )


def _best_classes(logits: Tensor, names: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    best = logits.sigmoid().topk(min(SHOWN_CLASSES, len(logits)))
    return tuple((names[label], p) for p, label in zip(best.values.tolist(), best.indices.tolist(), strict=True))


class _Found(NamedTuple):
    """A detection, and the number of the anchor that it was."""

    box: tuple[float, ...]
    score: float
    label: int
    anchor: int
    suppressed: int


def _find(
    logits: Tensor, deltas: Tensor, anchors_xyxy: Tensor, scale: float, image_size: tuple[int, int], index: int,
    settings: PostprocessSettings,
) -> _Found:  # fmt: skip
    """Post-process one picture's (1, A, K) logits and (1, A, 4) deltas, and trace a detection to its candidate."""
    sizes, scales = torch.tensor([image_size]), torch.tensor([scale])
    found = postprocess([logits], [deltas], anchors_xyxy, settings, scales=scales, image_sizes=sizes)
    count = int(found.counts[0])
    if not count:
        raise NothingFoundError(
            f"no detection scores {settings.score_threshold:g} or more; the best of all anchors is at "
            f"{float(logits.max().sigmoid()):.2g}: lower the score threshold, or take another picture"
        )
    if not 0 <= index < count:
        raise SettingError(f"detection {index}: the picture has {count}, numbered 0 to {count - 1}")
    box, score, label = found.boxes_xyxy[0, index], found.scores[0, index], found.labels[0, index]
    candidates = select_candidates([logits], settings.max_candidates, settings.score_threshold, settings.candidates)
    rows, labels, scores = candidates.anchor_indices[0], candidates.labels[0], candidates.logits[0].sigmoid()
    boxes = clip_boxes(decode_deltas(deltas[:, rows], anchors_xyxy[rows]), sizes * scales) / scale
    boxes = clip_boxes(boxes, sizes)[0]
    distances = (boxes - box).abs().amax(1).masked_fill(labels != label, float("inf"))
    own = _match(distances, scores, float(score), settings.nms)
    overlaps = pairwise_iou(boxes[own][None], boxes)[0] > settings.iou_threshold
    worse = overlaps & (labels == label) & (scores > 0) & (torch.arange(len(rows)) > own)
    return _Found(tuple(box.tolist()), float(score), int(label), int(rows[own]), int(worse.sum()))


def _match(distances: Tensor, scores: Tensor, score: float, nms: str) -> int:
    """Which candidate became the detection: (N,) distances of its box in pixels, inf for other classes; (N,) scores.

    Soft and matrix NMS change scores, so there the box tells (of equal boxes the best is taken); box fusion moves
    boxes, so there the score does; hard NMS changes neither.
    """
    never = float("inf")
    distances, differences = distances.nan_to_num(nan=never), (scores - score).abs()
    differences = differences.masked_fill(distances == never, never)
    if nms == "wbf":
        first, second = differences, distances
    else:
        first, second = distances, differences if nms == "hard" else -scores
    return int(second.masked_fill(first > first.min() + SAME, never).argmin())


def _anchor_place(
    spec: ModelSpec, image_size: tuple[int, int], number: int, anchor_xyxy: Tensor, scale: float
) -> AnchorPlace:
    """The place of an anchor by its number among those of all levels; its box is in pixels of the network's input."""
    sizes = level_sizes(image_size, spec.levels)
    ends = list(accumulate(height * width * spec.anchors_per_cell for height, width in sizes))
    place = bisect(ends, number)  # levels that end before it
    level, (height, width) = spec.levels[0] + place, sizes[place]
    cell, shape = divmod(number - (ends[place - 1] if place else 0), spec.anchors_per_cell)
    row, column = divmod(cell, width)
    octave, aspect = divmod(shape, len(spec.aspects))
    down, across = image_size[0] / height, image_size[1] / width
    corners = (column * across, row * down, (column + 1) * across, (row + 1) * down)
    return AnchorPlace(
        level, (down, across), row, column, octave, spec.aspects[aspect],
        tuple((anchor_xyxy / scale).tolist()), tuple(corner / scale for corner in corners),
    )  # fmt: skip
