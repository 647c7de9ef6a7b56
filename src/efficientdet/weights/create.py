"""`create_model`: a network with random weights, or with those of a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from efficientdet.errors import WeightsError
from efficientdet.family import ModelSpec
from efficientdet.network.efficientdet import CLASS_LAYER, COCO_SLOTS, EfficientDet, SpecOptions, make_spec
from efficientdet.weights.checkpoint import fit_state, load_checkpoint
from efficientdet.weights.names import find_weights


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
