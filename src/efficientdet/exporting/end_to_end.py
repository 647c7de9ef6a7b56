"""From letterboxed bytes to boxes in one graph: what `images.letterbox` and `inference.postprocess` do, to export."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from efficientdet.boxes import clip_boxes, decode_deltas, pairwise_iou
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.network.anchors import level_anchors, make_anchors

# (B, N, 4) boxes, (B, N) scores and labels to the (B, N) scores: 0 where hard NMS within the class drops the box.
Suppress = Callable[[Tensor, Tensor, Tensor, PostprocessSettings], Tensor]


def suppress_in_loop(boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings) -> Tensor:
    """Hard NMS as the textbook has it: take the best box left, drop those of its class that overlap it, again."""

    def goes_on(turn: Tensor, left: Tensor, kept: Tensor) -> Tensor:
        return (turn < settings.max_detections) & (left > 0).any()

    def take_best(turn: Tensor, left: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score, place = left.max(1, keepdim=True)  # (B, 1)
        box = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        overlaps = pairwise_iou(box, boxes)[:, 0] > settings.iou_threshold
        left = left.masked_fill(overlaps & (labels == labels.gather(1, place)), 0.0).scatter(1, place, 0.0)
        # Added, not written: an image with nothing left has score 0 at place 0, where its best box may be.
        return turn + 1, left, kept.scatter_add(1, place, score)

    start = (torch.zeros((), dtype=torch.int64), scores, torch.zeros_like(scores))
    kept: Tensor = while_loop(goes_on, take_best, start)[2]  # type: ignore[no-untyped-call]
    return kept


class EndToEnd(nn.Module):
    """A network with everything before and behind it.

    Args:
        network: (B, 3, H, W) to (B, A, K) class logits and (B, A, 4) box deltas.
        metadata: of the file: anchors, mean and std, settings of the post-processing (hard NMS over pairs), and whether
            the anchors are computed from the input's size or are those of `image_size`.
        suppress: hard NMS in operations that the file's format has.
    """

    def __init__(self, network: nn.Module, metadata: FileMetadata, suppress: Suppress = suppress_in_loop) -> None:
        super().__init__()
        self.network = network
        self.spec, self.settings, self.suppress = metadata.checkpoint.spec, metadata.postprocess, suppress
        preprocessing = metadata.checkpoint.preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("std", torch.tensor(preprocessing.std))
        thresholds = metadata.postprocess.class_thresholds(len(metadata.checkpoint.class_names))
        self.register_buffer("thresholds", torch.tensor(thresholds))
        self.has_any_size = metadata.dynamic_size
        fixed = make_anchors(self.spec, metadata.image_size)
        self.register_buffer("anchors", fixed[:0] if self.has_any_size else fixed.clone())

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, H, W, 3) uint8 RGB, letterboxed.
            image_sizes: (B, 2) int64, (height, width) of the originals.

        Returns:
            boxes_xyxy (B, D, 4) float32 in original pixels, scores (B, D), labels (B, D) int64, counts (B,) int64.
        """
        height, width = images.shape[1:3]
        class_logits, box_deltas = self.network(self._normalize(images, image_sizes))
        sizes = image_sizes.float()
        fits = [torch.full_like(side, most) / side for side, most in zip(sizes.unbind(1), (height, width), strict=True)]
        scales = torch.minimum(*fits)  # (B,)
        logits, labels, chosen = self._select(class_logits)
        deltas = box_deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
        boxes = decode_deltas(deltas, self._anchors(height, width)[chosen])
        boxes = clip_boxes(boxes, sizes * scales[:, None])
        scores = logits.sigmoid()
        scores = scores.masked_fill(scores < self.thresholds[labels], 0.0)  # type: ignore[index]
        kept = self.suppress(boxes, scores, labels, self.settings)
        # The candidates are in the order of their logits, which scores that are 1.0 when rounded no longer tell.
        ranks = torch.arange(kept.shape[1], 0, -1, dtype=torch.float32).where(kept > 0, 0.0)
        _, order = ranks.topk(torch.sym_min(self.settings.max_detections, kept.shape[1]), 1)  # type: ignore[no-untyped-call]
        best = kept.gather(1, order)
        is_real = best > 0
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)) / scales[:, None, None]
        boxes = clip_boxes(boxes, sizes) * is_real[..., None]
        return boxes, best, labels.gather(1, order) * is_real, is_real.sum(1)

    def _normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """(B, 3, H, W), 0 in the padding."""
        height, width = images.shape[1:3]
        own_height, own_width = image_sizes[:, :1], image_sizes[:, 1:]
        # The image's extents on the canvas, min(H / h, W / w) of its own, in whole numbers: (B, 1) each.
        rows = (own_height * width // own_width).clamp(1, height)
        columns = (own_width * height // own_height).clamp(1, width)
        is_inside = (torch.arange(height) < rows)[:, :, None] & (torch.arange(width) < columns)[:, None, :]
        pixels = (images.float() - self.mean) / self.std  # type: ignore[operator]
        return torch.where(is_inside[..., None], pixels, 0.0).permute(0, 3, 1, 2)

    def _anchors(self, height: int, width: int) -> Tensor:
        """(A, 4)."""
        if not self.has_any_size:
            return self.anchors  # type: ignore[return-value]
        strides = self.spec.strides
        levels = [level_anchors(self.spec, (height // step, width // step), (step, step)) for step in strides]
        return torch.cat(levels).float()

    def _select(self, class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best (anchor, class) pairs: logits, labels and anchors, (B, N) each, best first."""
        anchors, classes, most = *class_logits.shape[1:], self.settings.max_candidates
        # The best pairs lie in the anchors whose best class is best.
        _, rows = class_logits.amax(2).topk(torch.sym_min(most, anchors), 1)  # type: ignore[no-untyped-call]
        pairs = class_logits.gather(1, rows[..., None].expand(-1, -1, classes)).flatten(1)
        logits, flat = pairs.topk(torch.sym_min(most, pairs.shape[1]), 1)  # type: ignore[no-untyped-call]
        return logits, flat % classes, rows.gather(1, flat // classes)
