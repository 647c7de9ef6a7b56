"""Released weights as rows: where the file lies, how it is checked, what it was trained on and what it reaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efficientdet.errors import UnknownNameError, unknown_name
from efficientdet.family import find_spec
from efficientdet.images.letterbox import IMAGENET, LITE, Preprocessing
from efficientdet.weights.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

_RELEASE = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"

# x * 2 / 255 - 1: how the AdvProp models were trained (google/automl, Det-AdvProp.md).
ADVPROP = Preprocessing(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))

_PORTED = "Google's official weights, ported by effdet"
_RETRAINED = "trained by the effdet project: symmetric padding, no biases before batch norms"
_LITE = "Google's official Lite weights, ported by effdet, which measured the AP with mean and deviation 127.5"
_ADVPROP = "Google's AdvProp + AutoAugment weights, ported by effdet, which measured the AP with black padding"


@dataclass(frozen=True)
class ReleasedWeights:
    """One published file.

    Attributes:
        name: what the weights are called here.
        model: the member of the family that they belong to.
        url: where the file lies.
        sha256_prefix: first digits of its SHA-256, from the end of its name; None if the name carries none.
        ap: COCO AP on val2017 in percent that effdet's README states for this very file, measured with `nms`.
            `family.PUBLISHED_AP` has Google's own figures.
        preprocessing: how pictures become numbers.
        note: where the weights come from, and how the AP was measured differently, if it was.
        size_bytes: of the file; None: not published, so not checked.
        nms: suppression with which the AP was measured.
        license: of the weights, by the repository that publishes them.
        source: whose names the file uses, for `load_foreign`.
        num_classes: outputs for each anchor.
        class_names: by label; slots that COCO never filled are called `unused-ID`.
        category_ids: COCO's id by label.
    """

    name: str
    model: str
    url: str
    sha256_prefix: str | None
    ap: float
    preprocessing: Preprocessing
    note: str
    size_bytes: int | None = None
    nms: str = "hard"
    license: str = "Apache-2.0"
    source: str = "effdet"
    num_classes: int = len(COCO_CLASS_NAMES)
    class_names: tuple[str, ...] = COCO_CLASS_NAMES
    category_ids: tuple[int, ...] = COCO_CATEGORY_IDS

    @property
    def file_name(self) -> str:
        """Name of the published file, and of its copy in the cache."""
        return self.url.rpartition("/")[2]


def _row(name: str, model: str, file: str, ap: float, preprocessing: Preprocessing, note: str) -> ReleasedWeights:
    # effdet ends every file's name with the first eight digits of its SHA-256, as torch.hub checks them.
    prefix = Path(file).stem.rpartition("-")[2]
    return ReleasedWeights(name, model, _RELEASE + file, prefix, ap, preprocessing, note)


# File names: effdet 0.4.1, config/model_config.py. AP: README of the same version, column "mAP (val2017)".
_ROWS = (
    _row("d0", "d0", "tf_efficientdet_d0_34-f153e0cf.pth", 34.2, IMAGENET, _PORTED),
    _row("d1", "d1", "tf_efficientdet_d1_40-a30f94af.pth", 40.1, IMAGENET, _PORTED),
    _row("d2", "d2", "tf_efficientdet_d2_43-8107aa99.pth", 43.4, IMAGENET, _PORTED),
    _row("d3", "d3", "tf_efficientdet_d3_47-0b525f35.pth", 47.1, IMAGENET, _PORTED),
    _row("d4", "d4", "tf_efficientdet_d4_49-f56376d9.pth", 49.2, IMAGENET, _PORTED),
    _row("d5", "d5", "tf_efficientdet_d5_51-c79f9be6.pth", 51.2, IMAGENET, _PORTED),
    _row("d6", "d6", "tf_efficientdet_d6_52-4eda3773.pth", 52.0, IMAGENET, _PORTED),
    _row("d7", "d7", "tf_efficientdet_d7_53-6d1d7a95.pth", 53.1, IMAGENET, _PORTED),
    _row("d7x", "d7x", "tf_efficientdet_d7x-f390b87c.pth", 54.3, IMAGENET, _PORTED),
    _row("lite0", "lite0", "tf_efficientdet_lite0-dfacfc78.pth", 27.1, LITE, _LITE),
    _row("lite1", "lite1", "tf_efficientdet_lite1-6dc7ab30.pth", 32.2, LITE, _LITE),
    _row("lite2", "lite2", "tf_efficientdet_lite2-86c5d55b.pth", 35.9, LITE, _LITE),
    _row("lite3", "lite3", "tf_efficientdet_lite3-506852cb.pth", 39.6, LITE, _LITE),
    _row("lite3x", "lite3x", "tf_efficientdet_lite3x-8404c57b.pth", 43.6, LITE, _LITE),
    _row("lite4", "lite4", "tf_efficientdet_lite4-391ddabc.pth", 44.2, LITE, _LITE),
    _row("efficientdet_d0", "efficientdet_d0", "efficientdet_d0-f3276ba8.pth", 33.6, IMAGENET, _RETRAINED),
    _row("efficientdet_d1", "efficientdet_d1", "efficientdet_d1-bb7e98fe.pth", 39.4, IMAGENET, _RETRAINED),
    _row("d0_ap", "d0", "tf_efficientdet_d0_ap-d0cdbd0a.pth", 34.8, ADVPROP, _ADVPROP),
    _row("d1_ap", "d1", "tf_efficientdet_d1_ap-7721d075.pth", 40.8, ADVPROP, _ADVPROP),
    _row("d2_ap", "d2", "tf_efficientdet_d2_ap-a2995c19.pth", 44.2, ADVPROP, _ADVPROP),
    _row("d3_ap", "d3", "tf_efficientdet_d3_ap-e4a2feab.pth", 47.7, ADVPROP, _ADVPROP),
    _row("d4_ap", "d4", "tf_efficientdet_d4_ap-f601a5fc.pth", 50.2, ADVPROP, _ADVPROP),
    _row("d5_ap", "d5", "tf_efficientdet_d5_ap-3673ae5d.pth", 52.1, ADVPROP, _ADVPROP),
)

RELEASED: dict[str, ReleasedWeights] = {row.name: row for row in _ROWS}


def find_released(name: str) -> ReleasedWeights:
    """Look released weights up by name: `d0`, `d0_ap` (AdvProp), or any alias that `find_spec` knows.

    Raises:
        UnknownNameError: there are no such weights; lists the names and the nearest.
    """
    key = name.lower().replace("-", "_")
    advprop = key.removeprefix("tf_").removeprefix("efficientdet_")
    if advprop.endswith("_ap") and advprop in RELEASED:
        return RELEASED[advprop]
    try:
        model = find_spec(name).name
    except UnknownNameError:
        model = ""
    if model not in RELEASED:
        raise unknown_name("released weights", name, RELEASED)
    return RELEASED[model]
