"""Random weights that behave like trained ones, where a network is to be timed and there are no weights.

Fresh weights would make every class score 0.01, and a post-processing that has either nothing or everything to do. So
the batch norms take their statistics from a picture, and the last layers are scaled so that on it as many (anchor,
class) pairs lie above the thresholds as a detector trained on COCO shows.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from efficientdet.family import find_spec
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet, build_model
from efficientdet.weights.checkpoint import CheckpointInfo, default_preprocessing, save_checkpoint
from efficientdet.weights.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

# How many (anchor, class) pairs score above these.
PAIRS_ABOVE = {0.05: 200, 0.001: 20_000}
# Spread of the box deltas of a trained detector.
DELTA_SPREAD = 0.3
# Statistics of a larger input are hardly others, and would take long.
LARGEST_SIDE = 512


def _take_statistics(model: EfficientDet, pixels: Tensor) -> None:
    """Give the batch norms the statistics of the picture and its mirror image."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.cat([pixels, pixels.flip(3)]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _scale_outputs(model: EfficientDet, pixels: Tensor) -> None:
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
def random_model(name: str, image_size: int, picture: str | Path) -> tuple[EfficientDet, CheckpointInfo]:
    """Build a network of the family, always with the same weights.

    Args:
        name: such as `d0`.
        image_size: side of the input that the checkpoint shall name.
        picture: gives the statistics.

    Returns:
        The network in evaluation mode, and the facts of a checkpoint that say what its weights are.
    """
    spec = dataclasses.replace(find_spec(name), image_size=image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(spec, COCO_SLOTS)
    preprocessing = default_preprocessing(spec)
    side = min(image_size, LARGEST_SIDE)
    pixels = torch.from_numpy(letterbox(read(picture), (side, side), preprocessing)[0])[None]
    _take_statistics(model, pixels)
    _scale_outputs(model, pixels)
    about = {"source": "random weights, for measuring time"}
    return model, CheckpointInfo(spec, COCO_CLASS_NAMES, COCO_CATEGORY_IDS, preprocessing, about=about)


def write_random(name: str, image_size: int, picture: str | Path, path: str | Path) -> None:
    """Write `random_model` as a checkpoint."""
    model, info = random_model(name, image_size, picture)
    save_checkpoint(path, model.state_dict(), info)
