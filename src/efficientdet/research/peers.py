"""Figures that the EfficientDet paper prints, of other detectors and of its ablations. Source: arXiv 1911.09070 v7.

This package has neither counted nor measured any of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Latency(NamedTuple):
    """Latency of a detector; None stands for what is not published.

    Attributes:
        titan_v_ms: milliseconds on a Titan V: batch 1, TensorFlow 2.1, float32, network alone.
        v100_ms: milliseconds on a V100, with pre- and post-processing: in detectron2; of an EfficientDet, in TensorFlow
            and float16.
        cpu_s: seconds on one CPU thread (Figure 4c).
    """

    titan_v_ms: float | None = None
    v100_ms: float | None = None
    cpu_s: float | None = None


class Peer(NamedTuple):
    """A detector of Table 2. None stands for what is not published.

    Attributes:
        name: its name in the paper, with the image size where the paper gives it.
        family: its family, such as RetinaNet.
        compared_with: the EfficientDet that the paper compares it with.
        ap: COCO AP.
        is_test_dev: whether AP is on test-dev; else on val2017.
        parameters: parameters in millions.
        parameters_ratio: their ratio to the compared model's, as printed.
        multiply_adds: multiply-adds in billions; the paper calls them FLOPs.
        multiply_adds_ratio: their ratio to the compared model's, as printed.
        latency: its latency.
    """

    name: str
    family: str
    compared_with: str
    ap: float
    is_test_dev: bool
    parameters: float | None
    parameters_ratio: float | None
    multiply_adds: float | None
    multiply_adds_ratio: float | None
    latency: Latency = Latency()


# Table 2; Figure 4c has the seconds on a CPU of the largest model of each family.
PEERS = (
    Peer("YOLOv3", "YOLOv3", "d0", 33.0, True, None, None, 71, 28),
    Peer("RetinaNet R50 @640", "RetinaNet", "d1", 39.2, True, 34, 6.7, 97, 16, Latency(25)),
    Peer("RetinaNet R101 @640", "RetinaNet", "d1", 39.9, True, 53, 8.0, 127, 21, Latency(32, None, 3.6)),
    Peer("Mask R-CNN R101-FPN", "Mask R-CNN", "d2", 42.9, False, 63, 7.7, 164, 15, Latency(None, 56)),
    Peer("Mask R-CNN X101-FPN", "Mask R-CNN", "d2", 44.3, False, 107, 13, 277, 25, Latency(None, 103)),
    Peer("R50 + NAS-FPN @1024", "R50 + NAS-FPN", "d3", 44.2, True, 60, 5.1, 360, 15, Latency(64)),
    Peer("R50 + NAS-FPN @1280", "R50 + NAS-FPN", "d3", 44.8, True, 60, 5.1, 563, 23, Latency(99)),
    Peer("R50 + NAS-FPN @1280, 384 ch", "R50 + NAS-FPN", "d3", 45.4, True, 104, 8.7, 1043, 42, Latency(150, None, 27)),
    Peer("AmoebaNet + NAS-FPN + AA @1280", "AmoebaNet + NAS-FPN", "d4", 48.6, False, 185, 8.8, 1317, 24, Latency(246)),
    Peer("Mask R-CNN X152", "Mask R-CNN", "d5", 50.2, False, None, None, None, None, Latency(None, 234)),
    Peer(
        "AmoebaNet + NAS-FPN + AA @1536", "AmoebaNet + NAS-FPN", "d6", 50.7, False, 209, 4.0, 3045, 13,
        Latency(489, None, 83),
    ),
)  # fmt: skip

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
        name: its name in the paper.
        feature_network: its name in this package.
        fusion: its fusion in this package.
        ap: AP on val2017.
        parameters_ratio: parameters over the first row's.
        multiply_adds_ratio: multiply-adds over the first row's.
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

# Table 6: speed of three detectors on a GPU with fast normalized fusion, over that with softmax.
FAST_OVER_SOFTMAX = (1.28, 1.26, 1.31)


def times(ratio: float | None) -> str | None:
    """A ratio as the paper prints it: `28x`, `6.7x`, `0.71x`."""
    if ratio is None:
        return None
    digits = 2 if ratio < 2 else 1 if ratio < 10 else 0
    return f"{ratio:.{digits}f}x"
