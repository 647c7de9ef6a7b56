"""EfficientDet: the network that a ModelSpec describes (section 4)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor, nn
from typing_extensions import Unpack

from efficientdet.errors import SettingError, find_name
from efficientdet.family import ModelSpec, find_spec
from efficientdet.network.anchors import make_anchors
from efficientdet.network.backbones import build_backbone
from efficientdet.network.graph_file import GRAPH_SUFFIXES, read_graph
from efficientdet.network.heads import PRIOR_PROBABILITY, Head
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.network.topology import TOPOLOGIES, Topology, spec_topology

# COCO's category ids run to 90, with gaps; the released weights have a class for each id.
COCO_SLOTS = 90
# How the tensors of the layer are named whose size depends on the number of classes.
CLASS_LAYER = "class_head.predict.pointwise."
# The finest level that backbones give.
FINEST_LEVEL = 3


class EfficientDet(nn.Module):
    """Backbone, feature network, class head and box head.

    Attributes:
        spec: the architecture.
        num_classes: K, without a background class.
        backbone: images to the feature maps [P3, P4, P5].
        feature_network: those to one fused map for each level.
        class_head: fused maps to class logits.
        box_head: fused maps to box deltas.

    Raises:
        SettingError: num_classes is below 1, or the levels do not begin where the backbone's features do.
        UnknownNameError: the spec names something that is not known.
    """

    def __init__(self, spec: ModelSpec, num_classes: int, drop_path: float = 0.0) -> None:
        super().__init__()
        if num_classes < 1:
            raise SettingError(f"num_classes is {num_classes}; a detector needs at least one class")
        if spec.levels[0] != FINEST_LEVEL or spec.levels[1] < spec.levels[0]:
            raise SettingError(f"levels are {spec.levels}; the backbone's features begin at level {FINEST_LEVEL}")
        self.spec = spec
        self.num_classes = num_classes
        self.backbone = build_backbone(spec, drop_path)
        self.feature_network = FeatureNetwork(
            self.backbone.channels, spec_topology(spec), spec.width, spec.depth, spec.fusion, spec.activation,
            spec.padding, spec.redundant_bias, separable=spec.separable, per_channel=spec.fusion_per_channel,
        )  # fmt: skip
        levels = spec.levels[1] - spec.levels[0] + 1
        shape = (spec.width, spec.head_depth, levels, spec.anchors_per_cell)
        style = (spec.activation, spec.padding, spec.redundant_bias)
        self.class_head = Head(*shape, num_classes, *style, prior=PRIOR_PROBABILITY)
        self.box_head = Head(*shape, 4, *style)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Predict class logits and box deltas, the same in training and evaluation mode.

        Args:
            images: (B, 3, H, W) float, RGB, normalized as the spec says; any H and W.

        Returns:
            class_logits: list over levels, finest first, of (B, A_l, K).
            box_deltas: list over levels of (B, A_l, 4), (dx, dy, dw, dh). The A_l anchors of a level are ordered row,
                column, octave, aspect, as in `anchors`.
        """
        pyramid = self.feature_network(self.backbone(images))
        return self.class_head(pyramid), self.box_head(pyramid)

    def anchors(self, image_size: tuple[int, int]) -> Tensor:
        """Anchors for an input of (height, width): (A, 4) float32 boxes_xyxy on the network's device; do not write."""
        return make_anchors(self.spec, image_size, next(self.parameters()).device)


class SpecOptions(TypedDict, total=False):
    """The fields of `ModelSpec` that can be changed by keyword, for type checkers; None keeps the spec's value."""

    backbone: str | None
    image_size: int | None
    width: int | None
    depth: int | None
    head_depth: int | None
    levels: tuple[int, int] | None
    feature_network: str | Path | Topology | None
    separable: bool | None
    fusion: str | None
    fusion_per_channel: bool | None
    activation: str | None
    padding: str | None
    redundant_bias: bool | None
    anchor_scale: float | None
    aspects: tuple[tuple[float, float], ...] | None
    octaves: int | None
    normalization: str | None
    backbone_epsilon: float | None


def make_spec(name_or_spec: str | ModelSpec, **changes: Unpack[SpecOptions]) -> ModelSpec:
    """Look a spec up and change some of its fields.

    Args:
        name_or_spec: a name for `find_spec`, or a spec, such as one of `compound_scaling`.
        **changes: fields of `ModelSpec` and their new values. `feature_network` may be a name, the path of a `.yaml`
            file (see `graph_file`), or a `Topology`. A new backbone brings its normalization, unless that is given too.

    Raises:
        UnknownNameError: the model or the feature network is not known.
        SettingError: a field is unknown, or the graph file is at fault (names line and node).
    """
    spec = find_spec(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    unknown = sorted(given.keys() - SpecOptions.__annotations__.keys())
    if unknown:
        raise SettingError(f"unknown fields of a model {unknown}; known are {', '.join(SpecOptions.__annotations__)}")
    if "backbone" in given:
        given.setdefault("normalization", "lite" if given["backbone"].startswith("lite") else "imagenet")
    graph = given.pop("feature_network", None)
    spec = dataclasses.replace(spec, **given)
    return spec if graph is None else _with_feature_network(spec, graph)


def _with_feature_network(spec: ModelSpec, choice: str | Path | Topology) -> ModelSpec:
    if not isinstance(choice, Topology) and Path(choice).suffix not in GRAPH_SUFFIXES:
        name = find_name("feature network", str(choice), TOPOLOGIES)
        return dataclasses.replace(spec, feature_network=name, nodes=None)
    topology = choice if isinstance(choice, Topology) else read_graph(choice, spec.levels)
    if topology.levels != spec.levels:
        raise SettingError(
            f"feature network '{topology.name}' is for levels {topology.levels}, {spec.name} has {spec.levels}"
        )
    nodes = tuple((node.name, node.level, node.inputs, node.combine) for node in topology.nodes)
    return dataclasses.replace(spec, feature_network=topology.name, nodes=nodes)
