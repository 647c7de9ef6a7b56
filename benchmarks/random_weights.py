"""Random weights that behave like trained ones, for both sides: python random_weights.py d0 512 picture.jpg out.pt.

Fresh weights would make every class score 0.01, and a post-processing that has either nothing or everything to do. So
the batch norms take their statistics from the picture, and the last layers are scaled so that on it as many (anchor,
class) pairs lie above the thresholds as a detector trained on COCO shows.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn
from worker import NUM_CLASSES

from efficientdet.images import prepare, read
from efficientdet.network.efficientdet import EfficientDet, create_model
from efficientdet.weights.checkpoint import default_preprocessing
from efficientdet.weights.foreign import to_foreign

# How many (anchor, class) pairs score above these.
PAIRS_ABOVE = {0.05: 200, 0.001: 20_000}
# Spread of the box deltas of a trained detector.
DELTA_SPREAD = 0.3


def take_statistics(model: EfficientDet, pixels: Tensor) -> None:
    """Give the batch norms the statistics of the picture and its mirror image."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.cat([pixels, pixels.flip(3)]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def scale_outputs(model: EfficientDet, pixels: Tensor) -> None:
    """Scale and shift the last layers; they are linear, so one forward pass tells how."""
    class_logits, box_deltas = model.eval()(pixels)
    logits = torch.cat(class_logits, 1).flatten().sort(descending=True).values
    (high, high_rank), (low, low_rank) = (
        (math.log(score / (1 - score)), min(count, len(logits)) - 1) for score, count in PAIRS_ABOVE.items()
    )
    gain = (high - low) / float(logits[high_rank] - logits[low_rank])
    last = model.class_head.predict.pointwise
    assert last.bias is not None
    last.weight.mul_(gain)
    last.bias.mul_(gain).add_(high - gain * float(logits[high_rank]))
    spread = float(torch.cat(box_deltas, 1).std())
    model.box_head.predict.pointwise.weight.mul_(DELTA_SPREAD / spread)


@torch.no_grad()
def main(name: str, side: int, picture: str, out: str) -> None:
    """Write the weights under effdet's names."""
    torch.manual_seed(0)
    model = create_model(name, NUM_CLASSES)
    size = (side, side)
    pixels = torch.from_numpy(prepare(read(picture), size, default_preprocessing(model.spec))[0])[None]
    take_statistics(model, pixels)
    scale_outputs(model, pixels)
    torch.save(to_foreign(model, "effdet"), out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
