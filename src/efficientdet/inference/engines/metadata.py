"""What an exported file says of itself: one JSON object under the key `efficientdet`, for us and for every consumer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientdet.errors import WeightsError
from efficientdet.family import LIMITS, level_sizes
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.settings import to_dict
from efficientdet.version import __version__
from efficientdet.weights.info import CheckpointInfo

# In the metadata of .onnx and .xml files this stands before the SHA-256 of the file, and of the .bin that goes with it,
# taken with zeros in its place.
CHECKSUM = b"file-sha256:"
NO_CHECKSUM = b"0" * 64
# Names of the outputs, in order: of raw files, and of end-to-end ones.
RAW_OUTPUTS = ("class_logits", "box_deltas")
DETECTION_OUTPUTS = ("boxes_xyxy", "scores", "labels", "counts")

LETTERBOX = (
    "scale = min(height / image_height, width / image_width); resize to (int(image_height * scale), "
    "int(image_width * scale)); put at the top left; fill the rest with the mean color, which is 0 once normalized"
)
RAW = {
    "inputs": "images: (B, 3, height, width) float32, RGB, (pixel - mean) / std with pixels in 0..255",
    "outputs": "class_logits: (B, A, K) float32, before the sigmoid; box_deltas: (B, A, 4) float32 (dx, dy, dw, dh): "
    "center = anchor center + d * anchor side, side = anchor side * exp(d)",
}
END_TO_END = {
    "inputs": "images: (B, height, width, 3) uint8, RGB, letterboxed (the padding's values do not matter); "
    "image_sizes: (B, 2) int64, (height, width) of the original images",
    "outputs": "boxes_xyxy: (B, D, 4) float32, pixels of the original images; scores: (B, D) float32, best first; "
    "labels: (B, D) int64; counts: (B,) int64, how many of the D are detections, the rest is 0",
}


@dataclass(frozen=True)
class FileMetadata:
    """The metadata of an exported file.

    Attributes:
        checkpoint: what the checkpoint behind it says of itself.
        image_size: (height, width) of its input.
        postprocess: settings that its raw outputs are meant for; those of an end-to-end file are fixed.
        end_to_end: whether it goes from letterboxed bytes to boxes, instead of from normalized pixels to raw outputs.
        dynamic_batch: whether it takes any number of images, or one.
        dynamic_size: whether it takes any height and width that are multiples of the coarsest stride.
        precision: `fp32`, `fp16` (weights stored so) or `int8`.
        calibration: of an int8 file, which images gave the ranges.
    """

    checkpoint: CheckpointInfo
    image_size: tuple[int, int]
    postprocess: PostprocessSettings
    end_to_end: bool = False
    dynamic_batch: bool = False
    dynamic_size: bool = False
    precision: str = "fp32"
    calibration: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The metadata as they stand in the file, with all that a program without this package needs."""
        info, spec = self.checkpoint, self.checkpoint.spec
        cells = sum(height * width for height, width in level_sizes(self.image_size, spec.levels))
        content = {
            "version": __version__,
            "checkpoint": json.loads(info.to_json()),
            "model": spec.name,
            "class_names": info.class_names,
            "category_ids": info.category_ids,
            "image_size": self.image_size,
            "end_to_end": self.end_to_end,
            "dynamic_batch": self.dynamic_batch,
            "dynamic_size": self.dynamic_size,
            "precision": self.precision,
            "preprocessing": {**to_dict(info.preprocessing), "letterbox": LETTERBOX},
            "anchors": {
                "levels": spec.levels,
                "strides": spec.strides,
                "scale": spec.anchor_scale,
                "octaves": spec.octaves,
                "aspects": spec.aspects,
                "count": cells * spec.anchors_per_cell,
                "order": "level (finest first), row, column, octave, aspect (width, height)",
            },
            "postprocess": to_dict(self.postprocess),
            **(END_TO_END if self.end_to_end else RAW),
            **({} if self.calibration is None else {"calibration": self.calibration}),
            "checksum": (CHECKSUM + NO_CHECKSUM).decode(),
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> FileMetadata:
        """Read what `to_json` wrote; `text` is None or empty where the file at `path` has none.

        Raises:
            WeightsError: there are none, or a field is missing or wrong; names file and field.
        """
        if not text:
            raise WeightsError(
                f"{path}: has no metadata of this package, which did not export it; load its checkpoint, or export "
                "that: efficientdet export CHECKPOINT --out FILE.onnx"
            )
        try:
            fields = json.loads(text)
            if not fields["checksum"].startswith(CHECKSUM.decode()):  # else `verify_checksum` finds none to compare
                raise ValueError("the checksum's name is damaged")
            height, width = map(int, fields["image_size"])
            if not 1 <= min(height, width) <= max(height, width) <= LIMITS["image_size"][1]:
                raise ValueError(f"image_size is {height}x{width}")
            return cls(
                CheckpointInfo.from_json(json.dumps(fields["checkpoint"]), path),
                (height, width),
                PostprocessSettings(**fields["postprocess"]),
                end_to_end=bool(fields["end_to_end"]),
                dynamic_batch=bool(fields["dynamic_batch"]),
                dynamic_size=bool(fields["dynamic_size"]),
                precision=str(fields["precision"]),
                calibration=fields.get("calibration"),
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise WeightsError(f"{path}: damaged metadata ({type(error).__name__}: {error})") from error


def add_checksum(path: Path) -> None:
    """Put the checksum of an .onnx or .xml file into its metadata, in place."""
    content = path.read_bytes()
    place = content.rindex(CHECKSUM) + len(CHECKSUM)
    path.write_bytes(content[:place] + _checksum(path, content, place) + content[place + len(NO_CHECKSUM) :])


def verify_checksum(path: Path) -> None:
    """Compare an .onnx or .xml file with the checksum in its metadata; a file without one is not ours.

    Raises:
        WeightsError: the two do not fit.
    """
    content = path.read_bytes()
    found = content.rfind(CHECKSUM)
    place = found + len(CHECKSUM)
    if found >= 0 and content[place : place + len(NO_CHECKSUM)] != _checksum(path, content, place):
        raise WeightsError(
            f"{path}: damaged or changed: it does not match its checksum; copy the file again (an .xml with its .bin "
            "beside it), or export it anew"
        )


def _checksum(path: Path, content: bytes, place: int) -> bytes:
    digest = hashlib.sha256(content[:place] + NO_CHECKSUM + content[place + len(NO_CHECKSUM) :])
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        digest.update(weights.read_bytes())
    return digest.hexdigest().encode()
