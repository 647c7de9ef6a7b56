"""The settings of the commands that write and check datasets. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from efficientdet.errors import SettingError
from efficientdet.settings import Settings, setting

Format = Literal["coco", "voc", "yolo", "csv", "parquet"]


@dataclass(frozen=True)
class WriteSettings(Settings):
    """What is written, and how."""

    to: Format | None = setting(
        None, "Format to write: coco, voc, yolo, csv or parquet; by default that of the dataset that is read."
    )
    overwrite: bool = setting(False, "Replace the output folder if it exists.")
    hard_links: bool = setting(False, "Link images instead of copying them, where the file system can.")
    skip_missing: bool = setting(False, "Leave out images whose file is missing.")
    box_format: Literal["xywh", "xyxy", "cxcywh"] = setting(
        "xywh",
        "Boxes of parquet and Hugging Face datasets: xywh or xyxy in pixels, or cxcywh in fractions of the image.",
    )


@dataclass(frozen=True)
class SplitSettings(Settings):
    """How a dataset is divided."""

    val: float = setting(0.2, "Share of the images for validation.", minimum=0, below=1)
    test: float = setting(0.0, "Share of the images for the test.", minimum=0, below=1)
    seed: int = setting(0, "Seed: the same one gives the same splits.", minimum=0, maximum=2**32 - 1)
    group_by: str | None = setting(
        None,
        "Regular expression of image names: images whose first group (or match) is the same stay in one split, such as "
        "the frames of a video.",
    )

    def __post_init__(self) -> None:
        """Check types and ranges, and what contradicts each other; a SettingError names it."""
        super().__post_init__()
        if self.val + self.test >= 1 or self.val + self.test == 0:
            raise SettingError(f"val {self.val} and test {self.test}: together they must be above 0 and below 1")


@dataclass(frozen=True)
class SubsetSettings(Settings):
    """Which part of a dataset is kept."""

    classes: tuple[str, ...] = setting((), "Classes to keep, by name; by default all.")
    images: int | None = setting(None, "Number of images of each split.", minimum=1)
    fraction: float | None = setting(None, "Share of the images of each split.", above=0, maximum=1)
    keep_negatives: bool = setting(False, "Keep images that have none of the classes.")
    seed: int = setting(0, "Seed of the choice of images.", minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        """Check types and ranges, and what contradicts each other; a SettingError names it."""
        super().__post_init__()
        if self.images is not None and self.fraction is not None:
            raise SettingError("images and fraction are two ways to say the same; give one of them")


@dataclass(frozen=True)
class TileSettings(Settings):
    """How images are cut."""

    size: int = setting(640, "Side of a tile in pixels.", minimum=32, maximum=8192)
    overlap: float = setting(0.2, "Share of a tile that the next one repeats.", minimum=0, maximum=0.9)
    smallest_share: float = setting(
        0.3, "Share of a box's area below which its part in a tile is an ignored region.", minimum=0, maximum=1
    )


class ConvertOptions(TypedDict, total=False):
    """The fields of `WriteSettings`, but `to`, as keywords, for type checkers."""

    overwrite: bool
    hard_links: bool
    skip_missing: bool
    box_format: Literal["xywh", "xyxy", "cxcywh"]


class WriteOptions(ConvertOptions, total=False):
    """The fields of `WriteSettings` as keywords, for type checkers."""

    to: Format | None


class SplitOptions(WriteOptions, total=False):
    """The fields of `SplitSettings` and `WriteSettings` as keywords, for type checkers."""

    val: float
    test: float
    seed: int
    group_by: str | None


class SubsetOptions(WriteOptions, total=False):
    """The fields of `SubsetSettings` and `WriteSettings` as keywords, for type checkers."""

    classes: tuple[str, ...]
    images: int | None
    fraction: float | None
    keep_negatives: bool
    seed: int


class TileOptions(WriteOptions, total=False):
    """The fields of `TileSettings` and `WriteSettings` as keywords, for type checkers."""

    size: int
    overlap: float
    smallest_share: float


@dataclass(frozen=True)
class CheckSettings(Settings):
    """What a dataset is checked for."""

    model: str = setting("lite0", "Model whose anchors are compared with the boxes: d0-d7x or lite0-lite4.", flag="-m")
    image_size: int | None = setting(
        None, "Side of the square input in pixels; by default the model's.", minimum=32, maximum=8192
    )
    anchor_scale: float | None = setting(
        None,
        "Side of the smallest anchor of a level, in units of the level's stride; by default the model's.",
        minimum=1e-3,
        maximum=1e3,
    )
    aspects: tuple[float, ...] | None = setting(
        None, "Width over height of the anchor shapes; by default the model's.", minimum=1e-3, maximum=1e3
    )
    decode: bool = setting(True, "Decode every image, to find those that are unreadable, turned or repeated.")
    weights: str | None = setting(
        None, "Detector that looks for label errors; best one that was not trained on these images.", flag="-w"
    )
    folds: int = setting(
        0,
        "Parts of the dataset; for each, a model is trained on the other parts and looks for label errors in it. "
        "0 for none, 3 to 5 otherwise.",
        minimum=0,
        maximum=20,
    )
    fold_epochs: int = setting(20, "Epochs of the training for each part.", minimum=1)

    def __post_init__(self) -> None:
        """Check types and ranges, and what contradicts each other; a SettingError names it."""
        super().__post_init__()
        if self.folds == 1:
            raise SettingError("folds is 1; a model must be trained on other images than it looks at: 2 or more")
        if self.folds and self.weights:
            raise SettingError("weights and folds are two ways to look for label errors; give one of them")


class CheckOptions(TypedDict, total=False):
    """The fields of `CheckSettings` as keywords, for type checkers."""

    model: str
    image_size: int | None
    anchor_scale: float | None
    aspects: tuple[float, ...] | None
    decode: bool
    weights: str | None
    folds: int
    fold_epochs: int
