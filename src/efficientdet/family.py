"""The EfficientDet family as a table, and the compound scaling law that generates it (section 4.2).

Plain data, without torch. Every released model is one row of `MODELS`; `compound_scaling` gives models of any other
size.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from efficientdet.errors import SettingError, find_name

# (width, height) factors of an anchor's side. The released PyTorch weights were trained with the first set; Google's
# current code computes the second from aspect ratios 1, 2 and 1/2.
ASPECTS_ROUNDED = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
ASPECTS_EXACT = ((1.0, 1.0), (math.sqrt(2.0), math.sqrt(0.5)), (math.sqrt(0.5), math.sqrt(2.0)))

ASPECTS = {"rounded": ASPECTS_ROUNDED, "exact": ASPECTS_EXACT}

# At phi 20 the width is 25,000 channels already.
LARGEST_PHI = 20

# Smallest and largest values of a spec's numbers, far beyond any network that can be trained: what a damaged or hostile
# file asks for is refused before a layer is built. Whole limits are of whole numbers.
LIMITS = {
    "image_size": (1, 8192),
    "width": (1, 32_768),
    "depth": (1, 64),
    "head_depth": (0, 64),
    "levels": (0, 12),
    "anchor_scale": (1e-3, 1e3),
    "aspects": (1e-3, 1e3),
    "octaves": (1, 16),
    "backbone_epsilon": (0.0, 1.0),
}
MOST_ASPECTS = 32
MOST_NODES = 256

DepthRule = Literal["released", "arxiv-v1"]


@dataclass(frozen=True)
class ModelSpec:
    """The architecture of a network: everything but its weights and its number of classes.

    Attributes:
        name: what the model is called, such as `d0`.
        backbone: `b0`-`b7` or `lite0`-`lite4` (EfficientNet), `resnet18`-`resnet101`, or `timm:NAME`.
        image_size: side in pixels of the square input that the model is designed for; it runs at other sizes too.
        width: channels of the feature network and the heads (W_bifpn, eq. 1).
        depth: how many times the feature network's cell is repeated (D_bifpn, eq. 1).
        head_depth: convolutions in the class and box heads before the predicting one (D_box = D_class, eq. 2).
        levels: finest and coarsest pyramid level; level l has stride 2**l.
        feature_network: name of the topology.
        nodes: rows (name, level, inputs, combine) of a custom topology; None for the named one.
        separable: whether the feature network's convolutions are depthwise separable instead of full.
        fusion: `fast`, `softmax`, `unbounded` or `none`: how a node weighs its inputs (section 3.3).
        fusion_per_channel: whether each input has a fusion weight for every channel instead of one number.
        activation: `swish` or `relu6`.
        padding: `same` as in TensorFlow (more at the bottom and right), or `symmetric`.
        redundant_bias: whether convolutions right before a batch norm have a bias, as in the released weights.
        anchor_scale: side of the smallest anchor of a level, in units of the level's stride.
        aspects: (width, height) factors of the anchor shapes.
        octaves: anchor sizes per octave.
        normalization: `imagenet` or `lite`: which mean and standard deviation normalize the input.
        backbone_epsilon: epsilon of the backbone's batch norms.

    Raises:
        SettingError: a number is of the wrong type or outside `LIMITS`; names the field.
    """

    name: str
    backbone: str
    image_size: int
    width: int
    depth: int
    head_depth: int
    levels: tuple[int, int] = (3, 7)
    feature_network: str = "bifpn"
    nodes: tuple[tuple[str, int, tuple[str, ...], str], ...] | None = None
    separable: bool = True
    fusion: str = "fast"
    fusion_per_channel: bool = False
    activation: str = "swish"
    padding: str = "same"
    redundant_bias: bool = True
    anchor_scale: float = 4.0
    aspects: tuple[tuple[float, float], ...] = ASPECTS_ROUNDED
    octaves: int = 3
    normalization: str = "imagenet"
    backbone_epsilon: float = 1e-3

    def __post_init__(self) -> None:
        """Check the numbers."""
        nested = {"levels": self.levels, "aspects": [factor for pair in self.aspects for factor in pair]}
        for name, (smallest, largest) in LIMITS.items():
            for value in nested.get(name, [getattr(self, name)]):
                is_number = isinstance(value, (int, type(smallest))) and not isinstance(value, bool)
                if not is_number or not smallest <= value <= largest:
                    raise SettingError(f"model spec: {name} is {value!r:.80}; it must be {smallest:g} to {largest:g}")
        if len(self.levels) != 2 or self.levels[0] > self.levels[1]:
            raise SettingError(f"model spec: levels are {self.levels}; they must be the finest and the coarsest one")
        for name, rows, most in (("aspects", self.aspects, MOST_ASPECTS), ("nodes", self.nodes, MOST_NODES)):
            if rows is not None and not 1 <= len(rows) <= most:
                raise SettingError(f"model spec: {len(rows)} {name}; there must be 1 to {most}")

    @property
    def anchors_per_cell(self) -> int:
        """Number of anchors at each position of a level: octaves times aspects."""
        return self.octaves * len(self.aspects)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each level in pixels, finest first."""
        return tuple(2**level for level in range(self.levels[0], self.levels[1] + 1))

    def has_whole_cells(self, size: tuple[int, int]) -> bool:
        """Whether both sides of an input are multiples of the coarsest stride: then one graph serves all such sizes."""
        return not any(side % self.strides[-1] for side in size)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain types, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelSpec:
        """Make a spec from the result of `to_dict`.

        Raises:
            SettingError: a field is missing or unknown; names it.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        required = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        missing = sorted(required - set(fields))
        if unknown or missing:
            raise SettingError(f"model spec: unknown fields {unknown}, missing fields {missing}")
        values = dict(fields)
        if "levels" in values:
            values["levels"] = tuple(values["levels"])
        if "aspects" in values:
            values["aspects"] = tuple((float(w), float(h)) for w, h in values["aspects"])
        if values.get("nodes") is not None:
            values["nodes"] = tuple((name, level, tuple(reads), how) for name, level, reads, how in values["nodes"])
        return cls(**values)


def _lite(name: str, backbone: str, size: int, width: int, depth: int, head: int, scale: float) -> ModelSpec:
    return ModelSpec(
        name, backbone, size, width, depth, head,
        fusion="none", activation="relu6", anchor_scale=scale, normalization="lite",
    )  # fmt: skip


# The released models (paper, Table 1; google/automl efficientdet, hparams_config.py):
# name, backbone, image size, BiFPN width, BiFPN depth, head depth.
_RELEASED = (
    ModelSpec("d0", "b0", 512, 64, 3, 3),
    ModelSpec("d1", "b1", 640, 88, 4, 3),
    ModelSpec("d2", "b2", 768, 112, 5, 3),
    ModelSpec("d3", "b3", 896, 160, 6, 4),
    ModelSpec("d4", "b4", 1024, 224, 7, 4),
    ModelSpec("d5", "b5", 1280, 288, 7, 4),
    ModelSpec("d6", "b6", 1280, 384, 8, 5, fusion="none"),
    ModelSpec("d7", "b6", 1536, 384, 8, 5, fusion="none", anchor_scale=5.0),
    ModelSpec("d7x", "b7", 1536, 384, 8, 5, fusion="none", levels=(3, 8)),
    _lite("lite0", "lite0", 320, 64, 3, 3, 3.0),
    _lite("lite1", "lite1", 384, 88, 4, 3, 3.0),
    _lite("lite2", "lite2", 448, 112, 5, 3, 3.0),
    _lite("lite3", "lite3", 512, 160, 6, 4, 4.0),
    _lite("lite3x", "lite3", 640, 200, 6, 4, 3.0),
    _lite("lite4", "lite4", 640, 224, 7, 4, 4.0),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _RELEASED}

# Trained anew by the effdet project: symmetric padding, no biases before batch norms, torch's epsilon in the backbone.
VARIANTS: dict[str, ModelSpec] = {
    f"{name}-symmetric": dataclasses.replace(
        MODELS[name],
        name=f"{name}-symmetric",
        padding="symmetric",
        redundant_bias=False,
        backbone_epsilon=1e-5,
    )
    for name in ("d0", "d1")
}

# Published parameters (90 classes) and multiply-adds: google/automl README and efficientdet_arch_test.py.
PUBLISHED: dict[str, tuple[int, float]] = {
    "d0": (3_880_067, 2.551e9),
    "d1": (6_625_898, 6.134e9),
    "d2": (8_097_039, 11.046e9),
    "d3": (12_032_296, 24.983e9),
    "d4": (20_723_675, 55.347e9),
    "d5": (33_653_315, 135.730e9),
    "d6": (51_871_782, 226.034e9),
    "d7": (51_871_782, 325.474e9),
    "d7x": (77_147_166, 410e9),
    "lite0": (3_243_470, 0.978e9),
    "lite1": (4_248_318, 1.974e9),
    "lite2": (5_252_334, 3.383e9),
    "lite3": (8_350_862, 7.504e9),
    "lite3x": (9_280_862, 14.020e9),
    "lite4": (15_130_894, 20.221e9),
}

# Published COCO AP in percent: test-dev for d0-d7x (google/automl README, soft NMS), val2017 in float for lite.
PUBLISHED_AP: dict[str, float] = {
    "d0": 34.6, "d1": 40.5, "d2": 43.9, "d3": 47.2, "d4": 49.7, "d5": 51.5, "d6": 52.6, "d7": 53.7, "d7x": 55.1,
    "lite0": 26.41, "lite1": 31.50, "lite2": 35.06, "lite3": 38.77, "lite3x": 42.64, "lite4": 43.18,
}  # fmt: skip


def aspect_factors(ratios: Iterable[float]) -> tuple[tuple[float, float], ...]:
    """(width, height) factors of anchors with these ratios of width to height, all of the same area."""
    return tuple((math.sqrt(ratio), math.sqrt(1 / ratio)) for ratio in ratios)


def find_spec(name: str) -> ModelSpec:
    """Look a model up by name.

    Upper and lower case, `_` and `-` make no difference, nor do the prefixes of other projects: `d0`, `efficientdet-d0`
    and `tf_efficientdet_d0` are one network.

    Args:
        name: a key of `MODELS` (`d0`-`d7x`, `lite0`-`lite4`) or `VARIANTS` (`d0-symmetric`, `d1-symmetric`).

    Raises:
        UnknownNameError: there is no such model; lists the known ones and gives the nearest.
    """
    known = MODELS | VARIANTS
    return known[find_name("model", without_prefix(name), known)]


def without_prefix(name: str) -> str:
    """A model's name without the `tf_` and `efficientdet_` that other projects put before it."""
    return re.sub(r"^(tf[_-])?(efficientdet[_-])?", "", name, flags=re.IGNORECASE)


def _width(phi: float) -> int:
    """The released width at whole phi up to 6; else the formula, rounded to a multiple of 8."""
    if phi == int(phi) and phi <= 6:
        return MODELS[f"d{int(phi)}"].width
    return max(8, int(round(64 * 1.35**phi / 8)) * 8)


def compound_scaling(phi: float, depth_rule: DepthRule = "released") -> ModelSpec:
    """Scale image size, depth and width of the whole detector together (paper, section 4.2, eq. 1-3).

    The width is 64 * 1.35**phi (rounded as in the released models), the BiFPN depth 3 + phi, the head depth
    3 + floor(phi / 3), the image size 512 + 128 * phi rounded to a multiple of 128, and the backbone
    EfficientNet-B(phi). Fractions of phi give models in between. The released D5 (7 cells, 1280 px), D6, D7 and D7x
    do not follow this formula: take them from `MODELS`.

    Args:
        phi: compound coefficient, 0 to 20; fractions are allowed.
        depth_rule: `released` for the released models and the CVPR paper (3 + phi cells), `arxiv-v1` for the first
            arXiv version (2 + phi cells).

    Returns:
        The spec, named after phi, such as `phi2.5`.

    Raises:
        SettingError: phi is negative, not finite, or above 20.
        UnknownNameError: the depth rule is not known.
    """
    if not math.isfinite(phi) or phi < 0:
        raise SettingError(f"phi is {phi}; it must be a finite number of at least 0")
    depth_rule = cast(DepthRule, find_name("depth rule", depth_rule, get_args(DepthRule)))
    if phi > LARGEST_PHI:
        raise SettingError(f"phi is {phi}; the largest is {LARGEST_PHI}")
    first_depth = 3 if depth_rule == "released" else 2
    return ModelSpec(
        name=f"phi{phi:g}" + ("" if depth_rule == "released" else "-arxiv-v1"),
        backbone=f"b{min(7, int(phi + 0.5))}",
        image_size=int(4 + phi + 0.5) * 128,  # 512 + 128 * phi, to a multiple of 128
        width=_width(phi),
        depth=first_depth + int(phi + 0.5),
        head_depth=3 + int(phi // 3),
    )


def level_sizes(image_size: tuple[int, int], levels: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of each level's feature map, finest first.

    Args:
        image_size: (height, width) of the input in pixels; each level halves it, rounded up.
        levels: finest and coarsest level.
    """
    height, width = image_size
    sizes = []
    for level in range(1, levels[1] + 1):
        height, width = -(-height // 2), -(-width // 2)
        if level >= levels[0]:
            sizes.append((height, width))
    return sizes
