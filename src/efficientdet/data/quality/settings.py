"""The settings of a check: defaults, ranges and descriptions. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from efficientdet.errors import SettingError
from efficientdet.settings import Settings, setting


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
        """Check types and ranges.

        Raises:
            SettingError: a value is out of range, or two contradict each other; names them.
        """
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
