"""What a checkpoint says of itself: all that a detector needs beside the weights. Without torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from efficientdet.errors import WeightsError
from efficientdet.family import ASPECTS, ModelSpec
from efficientdet.images.letterbox import IMAGENET, LITE, Preprocessing
from efficientdet.text import LONGEST_CLASS_NAME
from efficientdet.version import __version__

FORMAT = "efficientdet-1"
METADATA_KEY = "efficientdet"


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint's metadata.

    Attributes:
        spec: the network's architecture, anchors included.
        class_names: by label.
        category_ids: the ids that the dataset gives to the classes, by label.
        preprocessing: how pixels become the network's input.
        postprocess: fields of `PostprocessSettings` that differ from the defaults.
        metrics: such as `ap`, by name; `data` names the dataset that they were measured on.
        training: the settings of the training run.
        about: texts for people: `license`, `data`, `source`, `note`.
    """

    spec: ModelSpec
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocessing: Preprocessing
    postprocess: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def with_conventions(self, resize: Literal["official", "effdet"] | None, anchors: str | None) -> CheckpointInfo:
        """The same facts with another way of resizing or other anchor aspects, by name; None keeps its own."""
        info = self
        if resize is not None:
            info = dataclasses.replace(info, preprocessing=dataclasses.replace(info.preprocessing, resize=resize))
        if anchors is not None:
            info = dataclasses.replace(info, spec=dataclasses.replace(info.spec, aspects=ASPECTS[anchors]))
        return info

    def to_json(self) -> str:
        """The metadata as JSON, for a file."""
        return json.dumps({"format": FORMAT, "version": __version__, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str, source: Path) -> CheckpointInfo:
        """Make the metadata from the result of `to_json`.

        Args:
            text: the JSON.
            source: the file that it is from, for errors.

        Raises:
            WeightsError: it has another format, or a field is missing or wrong; names file and field.
        """
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise WeightsError(
                    f"{source}: format '{fields['format']}', this version reads '{FORMAT}'; upgrade the package"
                )
            names, ids = fields["class_names"], fields["category_ids"]
            if not names or len(names) != len(ids):
                raise ValueError(f"{len(names)} class_names, {len(ids)} category_ids")
            longest = max(len(str(name)) for name in names)
            if longest > LONGEST_CLASS_NAME:
                raise ValueError(f"a class name of {longest:,} characters; at most {LONGEST_CLASS_NAME:,} are allowed")
            return cls(
                spec=ModelSpec.from_dict(fields["spec"]),
                class_names=tuple(map(str, names)),
                category_ids=tuple(map(int, ids)),
                preprocessing=Preprocessing(**fields["preprocessing"]),
                postprocess=dict(fields["postprocess"]),
                metrics=dict(fields["metrics"]),
                training=dict(fields["training"]),
                about={str(key): str(value) for key, value in fields.get("about", {}).items()},
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise WeightsError(f"{source}: damaged metadata ({type(error).__name__}: {error})") from error


def default_preprocessing(spec: ModelSpec) -> Preprocessing:
    """The preprocessing of a fresh network: the normalization that its spec names."""
    return LITE if spec.normalization == "lite" else IMAGENET
