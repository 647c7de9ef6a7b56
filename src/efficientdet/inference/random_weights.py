"""Random weights that score like trained ones, for measuring the speed of a network that has no weights yet.

Freshly initialized weights score every class at 0.01, which leaves post-processing either nothing or everything to do.
So the batch norms take their statistics from an image, and the last layers are scaled until as many (anchor, class)
pairs exceed a score as with a detector trained on COCO.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from efficientdet.family import find_spec
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import ImageSource, read
from efficientdet.network.efficientdet import COCO_SLOTS, EfficientDet
from efficientdet.weights.info import CheckpointInfo, default_preprocessing
from efficientdet.weights.registry import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

# Score, and how many (anchor, class) pairs exceed it.
PAIRS_ABOVE = {0.05: 200, 0.001: 20_000}
# Standard deviation of a trained detector's box deltas.
DELTA_SPREAD = 0.3
# Larger inputs take longer and hardly change the statistics.
LARGEST_SIDE = 512


@torch.no_grad()
def random_model(name: str, image_size: int | None, image: ImageSource) -> tuple[EfficientDet, CheckpointInfo]:
    """Build a network of the family, with the same weights at every call.

    Args:
        name: such as `d0`.
        image_size: side of the input in pixels, which the checkpoint stores; None for the model's own.
        image: gives the batch norms their statistics.

    Returns:
        The network in evaluation mode, and the facts of a checkpoint, which say that its weights are random.

    Raises:
        UnknownNameError: the family has no such model.
        ImageError: the image cannot be read.
    """
    spec = find_spec(name)
    spec = dataclasses.replace(spec, image_size=image_size or spec.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EfficientDet(spec, COCO_SLOTS)
    preprocessing = default_preprocessing(spec)
    side = min(spec.image_size, LARGEST_SIDE)
    pixels = torch.from_numpy(letterbox(read(image), (side, side), preprocessing)[0])[None]
    update_bn([torch.cat([pixels, pixels.flip(3)])], model)  # the image and its mirror image
    _scale_outputs(model, pixels)
    about = {"source": "random weights, for measuring speed"}
    return model, CheckpointInfo(spec, COCO_CLASS_NAMES, COCO_CATEGORY_IDS, preprocessing, about=about)


def _scale_outputs(model: EfficientDet, pixels: Tensor) -> None:
    """Scale and shift the last layers; they are linear, so one forward pass gives the factors."""
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
