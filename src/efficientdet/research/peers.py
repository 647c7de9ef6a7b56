"""What the EfficientDet paper published of other detectors and of its ablations, as literal tables.

Nothing here is counted or measured by this package. Source of every number: arXiv 1911.09070 v7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Peer:
    """A detector of Table 2, and the EfficientDet that the paper puts it beside.

    Attributes:
        name: as the paper calls it, with the input side where it matters.
        family: peers of one family are drawn alike.
        compared_with: the model of our family whose ratios the paper prints.
        ap: COCO AP.
        is_test_dev: AP on test-dev; else on val2017, the only one published.
        parameters: in millions; None where not published.
        parameters_ratio: over the compared model's, as the paper prints it.
        multiply_adds: in billions; the paper calls them FLOPs.
        multiply_adds_ratio: over the compared model's, as the paper prints it.
        titan_v_ms: batch 1, TensorFlow 2.1, float32, the paper's own machine.
        v100_ms: from detectron2's table, another machine and another framework than ours.
        cpu_s: seconds on one thread (Figure 4c).
    """

    name: str
    family: str
    compared_with: str
    ap: float
    is_test_dev: bool
    parameters: float | None = None
    parameters_ratio: float | None = None
    multiply_adds: float | None = None
    multiply_adds_ratio: float | None = None
    titan_v_ms: float | None = None
    v100_ms: float | None = None
    cpu_s: float | None = None


# Table 2; seconds on the CPU from Figure 4c, where they are of the largest model of each family.
PEERS = (
    Peer("YOLOv3", "YOLOv3", "d0", 33.0, True, None, None, 71, 28),
    Peer("RetinaNet R50 @640", "RetinaNet", "d1", 39.2, True, 34, 6.7, 97, 16, 25),
    Peer("RetinaNet R101 @640", "RetinaNet", "d1", 39.9, True, 53, 8.0, 127, 21, 32, None, 3.6),
    Peer("Mask R-CNN R101-FPN", "Mask R-CNN", "d2", 42.9, False, 63, 7.7, 164, 15, None, 56),
    Peer("Mask R-CNN X101-FPN", "Mask R-CNN", "d2", 44.3, False, 107, 13, 277, 25, None, 103),
    Peer("R50 + NAS-FPN @1024", "R50 + NAS-FPN", "d3", 44.2, True, 60, 5.1, 360, 15, 64),
    Peer("R50 + NAS-FPN @1280", "R50 + NAS-FPN", "d3", 44.8, True, 60, 5.1, 563, 23, 99),
    Peer("R50 + NAS-FPN @1280, 384 ch", "R50 + NAS-FPN", "d3", 45.4, True, 104, 8.7, 1043, 42, 150, None, 27),
    Peer("AmoebaNet + NAS-FPN + AA @1280", "AmoebaNet + NAS-FPN", "d4", 48.6, False, 185, 8.8, 1317, 24, 246),
    Peer("Mask R-CNN X152", "Mask R-CNN", "d5", 50.2, False, None, None, None, None, None, 234),
    Peer("AmoebaNet + NAS-FPN + AA @1536", "AmoebaNet + NAS-FPN", "d6", 50.7, False, 209, 4.0, 3045, 13, 489, None, 83),
)  # fmt: skip


class Latency(NamedTuple):
    """Of a model of our family, by the paper's TensorFlow code: milliseconds on a Titan V and a V100, seconds on a CPU.

    Titan V: float32, network alone. V100: float16, with pre- and post-processing. CPU: one thread (Figure 4c).
    """

    titan_v_ms: float
    v100_ms: float
    cpu_s: float | None = None


# Table 2 and Figure 4c.
PAPER_LATENCY = {
    "d0": Latency(12, 10.2),
    "d1": Latency(16, 13.5, 0.74),
    "d2": Latency(23, 17.7),
    "d3": Latency(37, 29.0, 2.5),
    "d4": Latency(65, 42.8),
    "d5": Latency(128, 72.5),
    "d6": Latency(169, 92.8, 16),
    "d7": Latency(232, 122),
    "d7x": Latency(285, 153),
}


class BackboneRow(NamedTuple):
    """A row of Table 4: AP on val2017, parameters in millions, multiply-adds in billions."""

    name: str
    ap: float
    parameters: float
    multiply_adds: float


TABLE_4 = (
    BackboneRow("ResNet50 + FPN", 37.0, 34, 97),
    BackboneRow("EfficientNet-B3 + FPN", 40.3, 21, 75),
    BackboneRow("EfficientNet-B3 + BiFPN", 44.4, 12, 24),
)


class NetworkRow(NamedTuple):
    """A row of Table 5.

    Attributes:
        name: as the paper calls it.
        feature_network: what this package calls it.
        fusion: with or without weights.
        ap: on val2017.
        parameters_ratio: over the first row's.
        multiply_adds_ratio: over the first row's.
    """

    name: str
    feature_network: str
    fusion: str
    ap: float
    parameters_ratio: float
    multiply_adds_ratio: float


TABLE_5 = (
    NetworkRow("repeated top-down FPN", "fpn", "none", 42.29, 1.0, 1.0),
    NetworkRow("repeated FPN+PANet", "panet", "none", 44.08, 1.0, 1.0),
    NetworkRow("NAS-FPN", "nas-fpn", "none", 43.16, 0.71, 0.72),
    NetworkRow("fully-connected FPN", "fully-connected", "none", 43.06, 1.24, 1.21),
    NetworkRow("BiFPN (w/o weights)", "bifpn", "none", 43.94, 0.88, 0.67),
    NetworkRow("BiFPN (weighted)", "bifpn", "fast", 44.39, 0.88, 0.68),
)

# Table 6: how many times faster than with softmax three detectors run with fast normalized fusion, on a GPU.
FAST_OVER_SOFTMAX = (1.28, 1.26, 1.31)
