"""A detector that is ready in half a second: its end-to-end file, kept in the cache, runs without loading torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from efficientdet.atomic_write import write_text
from efficientdet.cache import cached, is_sealed, seal, sha256_of
from efficientdet.errors import EfficientDetError, WeightsError
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.exported import is_exported, open_end_to_end
from efficientdet.inference.engines.session import OUTSIDE
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings, wanted_backend
from efficientdet.settings import changed, divided
from efficientdet.weights.names import find_weights

# What makes and runs the file.
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime")
# The file is made for these, so that it serves every higher threshold and smaller number.
SCORE_THRESHOLD, MAX_DETECTIONS = 0.05, 100
# Settings of a detector that a file does not have.
PLAIN = ("rectangular", "reduced_decoding", "preprocess", "anchors", "precision")


def load_quickly(name_or_path: str | Path, **settings: Any) -> Detector:
    """As `load`, for a few images on a CPU: from the second call on, in any process, torch is not imported.

    The first call writes the end-to-end file, proven equal to the network as by `export`, into the cache. Where there
    can be none (a GPU, another backend, soft NMS, no ONNX Runtime) this is `load`.
    """
    own, post = divided(settings, DetectorSettings, PostprocessSettings)
    chosen, _ = changed(DetectorSettings(), own), changed(PostprocessSettings(), post)
    path = find_weights(name_or_path)
    if is_exported(path) or not _is_possible(chosen):
        return load(path, **settings)
    wide = _widened(post)
    try:
        file = cached(
            f"engines/{_key(path, chosen, wide)}-detect.onnx", is_sealed, lambda to: _make(path, own, wide, to)
        )
        metadata, engine = open_end_to_end(file)
        return Detector(None, metadata.checkpoint, engine=engine, **{**settings, "image_size": metadata.image_size})
    except EfficientDetError:  # there is no such file of this network; `load` says whatever else is wrong
        return load(path, **settings)


def _is_possible(settings: DetectorSettings) -> bool:
    """Whether an end-to-end file in ONNX Runtime is what these settings ask for."""
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None
    return (
        wanted_backend(settings.backend) in ("auto", "onnxruntime")
        and (settings.device == "cpu" or (settings.device == "auto" and not has_gpu))
        and all(getattr(settings, name) == getattr(DetectorSettings(), name) for name in PLAIN)
        and all(importlib.util.find_spec(name) for name in LIBRARIES)
    )


def _widened(post: dict[str, Any]) -> dict[str, Any]:
    """Settings of the file: those that were given, but so wide that it serves others too."""
    threshold = min(changed(PostprocessSettings(SCORE_THRESHOLD), post).lowest_threshold, SCORE_THRESHOLD)
    inside = {name: value for name, value in post.items() if name not in OUTSIDE}
    most = max(post.get("max_detections", 0), MAX_DETECTIONS)
    return {**inside, "score_threshold": threshold, "max_detections": most}


def _key(path: Path, settings: DetectorSettings, post: dict[str, Any]) -> str:
    """Of the checkpoint's content, the settings, and the versions that make the file."""
    versions = [importlib.metadata.version(name) for name in ("efficientdet", *LIBRARIES)]
    parts = sha256_of(path), settings.image_size, sorted(post.items()), versions
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _make(path: Path, own: dict[str, Any], post: dict[str, Any], to: Path) -> None:
    """Write the file; where it is not equal to the network, a note keeps the next call from trying again."""
    refusal = to.with_suffix(".refused")
    if refusal.is_file():
        raise WeightsError(refusal.read_text(encoding="utf-8"))

    from efficientdet.exporting.export import export
    from efficientdet.exporting.parity import ParityError

    try:
        export(load(path, **own, **post), to, end_to_end=True)
    except ParityError as error:
        write_text(refusal, str(error))
        raise
    seal(to)
