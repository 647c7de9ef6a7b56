"""Networks as torch.export takes them: half weights, and a whole way from bytes to boxes without a Python loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from efficientdet.boxes import clip_boxes, decode_deltas, pairwise_iou
from efficientdet.images.letterbox import Preprocessing
from efficientdet.inference.settings import PostprocessSettings


class HalfWeights(nn.Module):
    """A network whose convolutions' weights are stored as float16 and used as float32.

    Args:
        network: its weights are halved in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight = nn.Parameter(module.weight.half(), requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gives."""
        weights = {name: tensor.float() for name, tensor in self.network.named_parameters()}
        outputs: tuple[Tensor, Tensor] = torch.func.functional_call(self.network, weights, (images,))
        return outputs


class EndToEnd(nn.Module):
    """From letterboxed bytes to boxes: what `images.prepare` and `inference.postprocess` do, as one graph.

    Args:
        network: (B, 3, H, W) to (B, A, K) class logits and (B, A, 4) box deltas.
        anchors_xyxy: (A, 4).
        preprocessing: mean and std.
        settings: hard NMS over (anchor, class) pairs.
    """

    def __init__(
        self, network: nn.Module, anchors_xyxy: Tensor, preprocessing: Preprocessing, settings: PostprocessSettings
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.register_buffer("anchors", anchors_xyxy.clone())
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("std", torch.tensor(preprocessing.std))

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, H, W, 3) uint8 RGB, letterboxed.
            image_sizes: (B, 2) int64, (height, width) of the originals.

        Returns:
            boxes_xyxy (B, D, 4) float32 in original pixels, scores (B, D), labels (B, D) int64, counts (B,) int64.
        """
        class_logits, box_deltas = self.network(self._normalize(images, image_sizes))
        canvas = torch.tensor(images.shape[1:3])
        sizes = image_sizes.float()
        scales = (canvas.float() / sizes).amin(1)  # (B,)
        logits, labels, chosen = self._select(class_logits)
        deltas = box_deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
        boxes = clip_boxes(decode_deltas(deltas, self.anchors[chosen]), sizes * scales[:, None])  # type: ignore[index]
        scores = logits.sigmoid()
        scores = scores.masked_fill(scores < self.settings.score_threshold, 0.0)
        best, order = self._suppress(boxes, scores, labels)
        real = best > 0
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)) / scales[:, None, None]
        boxes = clip_boxes(boxes, sizes) * real[..., None]
        return boxes, best, labels.gather(1, order) * real, real.sum(1)

    def _normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """(B, 3, H, W), 0 outside the picture."""
        height, width = images.shape[1:3]
        canvas, swapped = torch.tensor([height, width]), torch.tensor([width, height])
        # min(H / h, W / w) in whole numbers.
        extents = torch.minimum(image_sizes * swapped // image_sizes.flip(1), canvas).clamp(min=1)  # (B, 2)
        rows = torch.arange(height) < extents[:, :1]  # (B, H)
        columns = torch.arange(width) < extents[:, 1:]
        inside = rows[:, :, None] & columns[:, None, :]
        pixels = (images.float() - self.mean) / self.std  # type: ignore[operator]
        return torch.where(inside[..., None], pixels, 0.0).permute(0, 3, 1, 2)

    def _select(self, class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best (anchor, class) pairs: logits, labels and anchors, (B, N) each, best first."""
        anchors, classes = class_logits.shape[1:]
        _, rows = class_logits.amax(2).topk(min(self.settings.max_candidates, anchors), 1)
        pairs = class_logits.gather(1, rows[..., None].expand(-1, -1, classes)).flatten(1)
        logits, flat = pairs.topk(min(self.settings.max_candidates, pairs.shape[1]), 1)
        return logits, flat % classes, rows.gather(1, flat // classes)

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) scores that hard NMS keeps, best first, and their places; the textbook's loop over boxes."""
        count = min(self.settings.max_detections, scores.shape[1])
        limit = self.settings.iou_threshold
        slots = torch.arange(count)

        def goes_on(turn: Tensor, left: Tensor, best: Tensor, places: Tensor) -> Tensor:
            return (turn < count) & (left > 0).any()

        def settle(turn: Tensor, left: Tensor, best: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            score, place = left.max(1, keepdim=True)  # (B, 1)
            box = boxes.gather(1, place[..., None].expand(-1, -1, 4))
            falls = (pairwise_iou(box, boxes)[:, 0] > limit) & (labels == labels.gather(1, place))
            left = left.masked_fill(falls, 0.0).scatter(1, place, 0.0)
            here = slots == turn
            return turn + 1, left, torch.where(here, score, best), torch.where(here, place, places)

        start = (torch.zeros((), dtype=torch.int64), scores, scores.new_zeros(scores.shape[0], count),
                 labels.new_zeros(labels.shape[0], count))  # fmt: skip
        _, _, best, places = while_loop(goes_on, settle, start)  # type: ignore[no-untyped-call]
        return best, places
