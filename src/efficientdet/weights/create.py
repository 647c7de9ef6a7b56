"""Networks with the weights of a checkpoint, or with random ones; those of `random_model` score like trained ones."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn
from typing_extensions import Unpack

from efficientdet.errors import WeightsError
from efficientdet.family import ModelSpec, find_spec
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import ImageSource, read
from efficientdet.network.efficientdet import CLASS_LAYER, COCO_SLOTS, EfficientDet, SpecOptions, make_spec
from efficientdet.weights.checkpoint import fit_state, load_checkpoint
from efficientdet.weights.info import CheckpointInfo, default_preprocessing
from efficientdet.weights.names import find_weights
from efficientdet.weights.registry import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

# Of the networks for measuring speed: a score, and how many (anchor, class) pairs exceed it.
PAIRS_ABOVE = {0.05: 200, 0.001: 20_000}
# Standard deviation of a trained detector's box deltas.
DELTA_SPREAD = 0.3
# Larger inputs take longer and hardly change the statistics.
LARGEST_SIDE = 512


def create_model(
    name_or_spec: str | ModelSpec = "d0",
    num_classes: int | None = None,
    *,
    weights: str | Path | None = None,
    replace_head: bool = False,
    drop_path: float = 0.0,
    **changes: Unpack[SpecOptions],
) -> EfficientDet:
    """Build a network.

        model = create_model("d0", num_classes=3, feature_network="panet")
        model = create_model("d0", num_classes=3, weights="d0", replace_head=True)

    Args:
        name_or_spec: `d0`-`d7x`, `lite0`-`lite4`, another name for `family.find_spec`, or a spec, such as
            `family.compound_scaling` gives.
        num_classes: K, at least 1; by default that of the weights, else COCO's 90 slots. Classes are 0-based, without a
            background class.
        weights: a bundled or released name, a checkpoint's path or `hf://owner/repo`, as `load` takes them; None for
            random weights. The anchors' scale and aspects come with them, unless `changes` has others. The network's
            input must be normalized as they were trained: `detector.info.preprocessing` of a loaded detector says how.
        replace_head: allow weights for another number of classes; the last layer of the class head is random then.
        drop_path: probability of stochastic depth in the last block of an EfficientNet backbone, in training.
        **changes: fields of `ModelSpec` and their new values: `backbone` (`b0`-`b7`, `lite0`-`lite4`,
            `resnet18`-`resnet101`, or `timm:NAME` for a model of timm with features of strides 8, 16 and 32),
            `feature_network` (`bifpn`, `fpn`, `panet`, `simplified-panet`, `nas-fpn`, `fully-connected`, the path of a
            `.yaml` file, or a `Topology`), `fusion` (`fast`, `softmax`, `unbounded`, `none`), `fusion_per_channel`,
            `separable`, `width`, `depth`, `head_depth` and the others.

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        UnknownNameError: the model, feature network, fusion, backbone or weights are not known.
        SettingError: a number is out of range; the graph file is at fault (names line and node); drop_path is set for
            another backbone than an EfficientNet; or timm's model does not suit.
        WeightsError: the weights cannot be had, or do not fit the network; lists every tensor that differs.
        MissingExtraError: the backbone is one of timm's, and timm is not installed.
    """
    spec = make_spec(name_or_spec, **changes)
    if weights is None:
        return EfficientDet(spec, COCO_SLOTS if num_classes is None else num_classes, drop_path)
    source, _ = load_checkpoint(find_weights(weights))
    model = EfficientDet(spec, source.num_classes if num_classes is None else num_classes, drop_path)
    has_other_classes = model.num_classes != source.num_classes
    if has_other_classes and not replace_head:
        raise WeightsError(
            f"{weights}: has {source.num_classes} classes, not {model.num_classes}; with replace_head=True the last "
            "layer of the class head starts at random, and the rest is kept"
        )
    copy_weights(model, source, str(weights), with_class_layer=not has_other_classes)
    anchors: dict[str, Any] = {name: changes.get(name) for name in ("anchor_scale", "aspects")}
    model.spec = dataclasses.replace(
        model.spec, **{name: value for name, value in anchors.items() if value is not None}
    )
    return model


def copy_weights(model: EfficientDet, source: EfficientDet, name: str, *, with_class_layer: bool) -> None:
    """Copy weights and the shapes of the anchors from one network into another of the same architecture.

    Args:
        model: changed in place.
        source: the network to copy from.
        name: of its weights, for the message.
        with_class_layer: copy the last layer of the class head too, whose size depends on the number of classes.

    Raises:
        WeightsError: other tensors differ; lists them and changes nothing.
    """
    own = {} if with_class_layer else {k: v for k, v in model.state_dict().items() if k.startswith(CLASS_LAYER)}
    state = source.state_dict() | own
    fit_state(model, state, name, model.spec.name)
    model.load_state_dict(state)
    model.spec = dataclasses.replace(model.spec, anchor_scale=source.spec.anchor_scale, aspects=source.spec.aspects)


@torch.no_grad()
def random_model(name: str, image_size: int | None, image: ImageSource) -> tuple[EfficientDet, CheckpointInfo]:
    """Build a network of the family for measuring speed, with the same weights at every call.

    Freshly initialized ones score every class at 0.01, which leaves post-processing either nothing or everything to do;
    so the batch norms take their statistics from an image, and the last layers are scaled until as many (anchor, class)
    pairs exceed a score as with a detector of COCO.

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
