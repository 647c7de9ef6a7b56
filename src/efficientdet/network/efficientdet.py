"""EfficientDet: a ModelSpec made into a network (section 4)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from efficientdet.errors import SettingError
from efficientdet.family import ModelSpec, find_spec
from efficientdet.network.anchors import make_anchors
from efficientdet.network.backbones import build_backbone
from efficientdet.network.graph_file import GRAPH_SUFFIXES, read_graph
from efficientdet.network.heads import PRIOR_PROBABILITY, Head
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.network.topology import Topology, spec_topology

# COCO's category ids run to 90, with gaps; the released weights have a class for each id.
COCO_SLOTS = 90
# The finest map that the backbone hands over.
FINEST_LEVEL = 3


class EfficientDet(nn.Module):
    """Backbone, feature network, and the two heads.

    Attributes:
        spec: what was built.
        num_classes: K.
        backbone: images to [P3, P4, P5].
        feature_network: those to the fused maps of every level.
        class_head: fused maps to class logits.
        box_head: fused maps to box deltas.
    """

    def __init__(self, spec: ModelSpec, num_classes: int, drop_path: float = 0.0) -> None:
        super().__init__()
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
        """Predict, in training and in evaluation alike.

        Args:
            images: (B, 3, H, W) float, RGB, normalized as the spec says. Any H and W.

        Returns:
            class_logits: list over levels, finest first, of (B, A_l, K).
            box_deltas: list over levels of (B, A_l, 4), (dx, dy, dw, dh). A_l counts anchors in the order row, column,
                octave, aspect: the order of `anchors`.
        """
        pyramid = self.feature_network(self.backbone(images))
        return self.class_head(pyramid), self.box_head(pyramid)

    def anchors(self, image_size: tuple[int, int]) -> Tensor:
        """Anchors for an input of (height, width): (A, 4) float32 boxes_xyxy, on the network's device; shared."""
        return make_anchors(self.spec, image_size, next(self.parameters()).device)


def create_model(
    name_or_spec: str | ModelSpec = "d0",
    num_classes: int = COCO_SLOTS,
    *,
    backbone: str | None = None,
    feature_network: str | Path | Topology | None = None,
    fusion: str | None = None,
    fusion_per_channel: bool | None = None,
    separable: bool | None = None,
    drop_path: float = 0.0,
) -> EfficientDet:
    """Build a network with fresh weights.

    Args:
        name_or_spec: `d0`-`d7x`, `lite0`-`lite4`, an alias, or a spec such as `compound_scaling` gives.
        num_classes: K, at least 1. Classes are 0-based; there is no background class.
        backbone: `b0`-`b7`, `lite0`-`lite4`, `resnet18`, `resnet34`, `resnet50`, `resnet101`, or `timm:NAME`: a model
            of timm (`pip install timm`) that gives features of strides 8, 16 and 32. None for the spec's. The input's
            normalization goes with it: `lite` for `lite0`-`lite4`, else `imagenet`.
        feature_network: `bifpn`, `fpn`, `panet`, `simplified-panet`, `nas-fpn` or `fully-connected`; a
            `.yaml` file (see `graph_file`) or a `Topology` of one's own; None for the spec's.
        fusion: `fast`, `softmax`, `unbounded` or `none`; None for the spec's.
        fusion_per_channel: one fusion weight a channel; None for the spec's.
        separable: depthwise separable convolutions in the feature network; None for the spec's.
        drop_path: stochastic depth of the backbone in training; an EfficientNet's only.

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        UnknownNameError: the model, feature network, fusion or backbone is not known.
        SettingError: num_classes is below 1; the graph file is at fault (names line and node); drop_path is set for a
            backbone without; or timm's model does not suit.
        MissingExtraError: the backbone is one of timm's, and timm is not installed.
    """
    spec = find_spec(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    if num_classes < 1:
        raise SettingError(f"num_classes is {num_classes}; a detector needs at least one class")
    if backbone is not None:
        normalization = "lite" if backbone.startswith("lite") else "imagenet"
        spec = dataclasses.replace(spec, backbone=backbone, normalization=normalization)
    if feature_network is not None:
        spec = _with_feature_network(spec, feature_network)
    changes = {"fusion": fusion, "fusion_per_channel": fusion_per_channel, "separable": separable}
    spec = dataclasses.replace(spec, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]
    return EfficientDet(spec, num_classes, drop_path)


def _with_feature_network(spec: ModelSpec, choice: str | Path | Topology) -> ModelSpec:
    if not isinstance(choice, Topology) and Path(choice).suffix not in GRAPH_SUFFIXES:
        return dataclasses.replace(spec, feature_network=str(choice), nodes=None)
    topology = choice if isinstance(choice, Topology) else read_graph(choice, spec.levels)
    if topology.levels != spec.levels:
        raise SettingError(
            f"feature network '{topology.name}' is for levels {topology.levels}, {spec.name} has {spec.levels}"
        )
    nodes = tuple((node.name, node.level, node.inputs, node.combine) for node in topology.nodes)
    return dataclasses.replace(spec, feature_network=topology.name, nodes=nodes)
