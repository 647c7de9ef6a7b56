"""What an exported file says of itself: one JSON object under the key `efficientdet`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from efficientdet.errors import WeightsError
from efficientdet.exporting.settings import ExportSettings
from efficientdet.inference.detector import Detector
from efficientdet.settings import to_dict
from efficientdet.version import __version__

KEY = "efficientdet"

LETTERBOX = (
    "scale = min(height / image_height, width / image_width); resize to (int(image_height * scale), "
    "int(image_width * scale)); put at the top left; fill the rest with the mean color, which is 0 once normalized"
)
RAW_INPUT = "images: (B, 3, height, width) float32, RGB, (pixel - mean) / std with pixels in 0..255"
RAW_OUTPUTS = (
    "class_logits: (B, A, K) float32, before the sigmoid; box_deltas: (B, A, 4) float32 (dx, dy, dw, dh): "
    "center = anchor center + d * anchor side, side = anchor side * exp(d)"
)
WHOLE_INPUT = (
    "images: (B, height, width, 3) uint8, RGB, letterboxed (what lies outside the picture is not looked at); "
    "image_sizes: (B, 2) int64, (height, width) of the original pictures"
)
WHOLE_OUTPUTS = (
    "boxes_xyxy: (B, D, 4) float32, pixels of the original pictures; scores: (B, D) float32, best first; labels: "
    "(B, D) int64; counts: (B,) int64, how many of the D are detections, the rest is 0"
)


def file_facts(detector: Detector, settings: ExportSettings) -> dict[str, Any]:
    """All that a consumer needs to feed the file and to read its answer, as plain types ready for JSON."""
    spec, info = detector.model.spec, detector.info
    return {
        "version": __version__,
        "checkpoint": json.loads(info.to_json()),
        "model": spec.name,
        "class_names": list(info.class_names),
        "category_ids": list(info.category_ids),
        "image_size": list(detector.image_size),
        "end_to_end": settings.end_to_end,
        "dynamic_batch": settings.dynamic_batch,
        "dynamic_size": settings.dynamic_size,
        "precision": settings.precision,
        "preprocessing": {**info.preprocessing.to_dict(), "letterbox": LETTERBOX},
        "anchors": {
            "levels": list(spec.levels),
            "strides": list(spec.strides),
            "scale": spec.anchor_scale,
            "octaves": spec.octaves,
            "aspects": [list(pair) for pair in spec.aspects],
            "count": len(detector.model.anchors(detector.image_size)),
            "order": "level (finest first), row, column, octave, aspect (width, height)",
        },
        "postprocess": to_dict(detector.postprocess),
        "inputs": WHOLE_INPUT if settings.end_to_end else RAW_INPUT,
        "outputs": WHOLE_OUTPUTS if settings.end_to_end else RAW_OUTPUTS,
    }


def read_facts(text: str | None, path: Path) -> dict[str, Any]:
    """Parse the metadata of a file.

    Raises:
        WeightsError: it has none, or damaged ones; names the file.
    """
    if not text:
        raise WeightsError(f"{path}: holds no '{KEY}' metadata, so it was not exported by this package")
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{path}: its '{KEY}' metadata is damaged ({error})") from error
    if not isinstance(facts, dict) or "image_size" not in facts:
        raise WeightsError(f"{path}: its '{KEY}' metadata is damaged (no image_size)")
    return facts


def layer_name(weight: str) -> str:
    """The network's name of the layer whose weight a file calls so: without the wrappers around the network."""
    return weight.rpartition("model.")[2].removesuffix(".weight")
