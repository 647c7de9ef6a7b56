"""The released weights as a table, with the AP that their publisher states, and the classes of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efficientdet.images.letterbox import IMAGENET, LITE, Preprocessing

# Of every file in the table: where it lies, its license, and whose tensor names it uses.
RELEASE_URL = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"
LICENSE = "Apache-2.0"
SOURCE = "effdet"

# x * 2 / 255 - 1: the input of the AdvProp models (google/automl, Det-AdvProp.md).
ADVPROP = Preprocessing(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))

_PORTED = "Google's official weights, ported by effdet"
_SYMMETRIC = "trained by the effdet project: symmetric padding, no biases before batch norms"
_LITE = "Google's official Lite weights, ported by effdet, which measured the AP with mean and deviation 127.5"
_ADVPROP = "Google's AdvProp + AutoAugment weights, ported by effdet, which measured the AP with black padding"


@dataclass(frozen=True)
class ReleasedWeights:
    """One published file.

    Attributes:
        name: what the weights are called here.
        file: name of the published file; it ends with the first eight hexadecimal digits of its SHA-256, which is all
            of it that effdet publishes.
        ap: COCO AP on val2017 in percent, with hard NMS, as effdet's README states it for this file.
            `family.PUBLISHED_AP` has Google's figures.
        preprocessing: how the network was trained to take its pixels.
        note: where the weights come from, and how the AP was measured differently, if it was.
    """

    name: str
    file: str
    ap: float
    preprocessing: Preprocessing = IMAGENET
    note: str = _PORTED

    @property
    def model(self) -> str:
        """Name of the network."""
        return self.name.removesuffix("-ap")

    @property
    def url(self) -> str:
        """Address of the file."""
        return RELEASE_URL + self.file

    @property
    def sha256_prefix(self) -> str:
        """First eight hexadecimal digits of the file's SHA-256."""
        return Path(self.file).stem.rpartition("-")[2]


# File names: effdet 0.4.1, config/model_config.py. AP: README of the same version, column "mAP (val2017)".
_ROWS = (
    ReleasedWeights("d0", "tf_efficientdet_d0_34-f153e0cf.pth", 34.2),
    ReleasedWeights("d1", "tf_efficientdet_d1_40-a30f94af.pth", 40.1),
    ReleasedWeights("d2", "tf_efficientdet_d2_43-8107aa99.pth", 43.4),
    ReleasedWeights("d3", "tf_efficientdet_d3_47-0b525f35.pth", 47.1),
    ReleasedWeights("d4", "tf_efficientdet_d4_49-f56376d9.pth", 49.2),
    ReleasedWeights("d5", "tf_efficientdet_d5_51-c79f9be6.pth", 51.2),
    ReleasedWeights("d6", "tf_efficientdet_d6_52-4eda3773.pth", 52.0),
    ReleasedWeights("d7", "tf_efficientdet_d7_53-6d1d7a95.pth", 53.1),
    ReleasedWeights("d7x", "tf_efficientdet_d7x-f390b87c.pth", 54.3),
    ReleasedWeights("lite0", "tf_efficientdet_lite0-dfacfc78.pth", 27.1, LITE, _LITE),
    ReleasedWeights("lite1", "tf_efficientdet_lite1-6dc7ab30.pth", 32.2, LITE, _LITE),
    ReleasedWeights("lite2", "tf_efficientdet_lite2-86c5d55b.pth", 35.9, LITE, _LITE),
    ReleasedWeights("lite3", "tf_efficientdet_lite3-506852cb.pth", 39.6, LITE, _LITE),
    ReleasedWeights("lite3x", "tf_efficientdet_lite3x-8404c57b.pth", 43.6, LITE, _LITE),
    ReleasedWeights("lite4", "tf_efficientdet_lite4-391ddabc.pth", 44.2, LITE, _LITE),
    ReleasedWeights("d0-symmetric", "efficientdet_d0-f3276ba8.pth", 33.6, IMAGENET, _SYMMETRIC),
    ReleasedWeights("d1-symmetric", "efficientdet_d1-bb7e98fe.pth", 39.4, IMAGENET, _SYMMETRIC),
    ReleasedWeights("d0-ap", "tf_efficientdet_d0_ap-d0cdbd0a.pth", 34.8, ADVPROP, _ADVPROP),
    ReleasedWeights("d1-ap", "tf_efficientdet_d1_ap-7721d075.pth", 40.8, ADVPROP, _ADVPROP),
    ReleasedWeights("d2-ap", "tf_efficientdet_d2_ap-a2995c19.pth", 44.2, ADVPROP, _ADVPROP),
    ReleasedWeights("d3-ap", "tf_efficientdet_d3_ap-e4a2feab.pth", 47.7, ADVPROP, _ADVPROP),
    ReleasedWeights("d4-ap", "tf_efficientdet_d4_ap-f601a5fc.pth", 50.2, ADVPROP, _ADVPROP),
    ReleasedWeights("d5-ap", "tf_efficientdet_d5_ap-3673ae5d.pth", 52.1, ADVPROP, _ADVPROP),
)

RELEASED: dict[str, ReleasedWeights] = {row.name: row for row in _ROWS}

# COCO's 80 classes in the 90 slots that these weights have: label = category id - 1, gaps kept.
# Source: instances_val2017.json of COCO 2017. Ten ids of the 90 were never annotated.
COCO_CATEGORIES: dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip

# By label, of the released weights. A slot without a class never trained as one: its name says so.
COCO_CATEGORY_IDS: tuple[int, ...] = tuple(range(1, 91))
COCO_CLASS_NAMES: tuple[str, ...] = tuple(
    COCO_CATEGORIES.get(category_id, f"unused-{category_id}") for category_id in COCO_CATEGORY_IDS
)
