"""EfficientDet in PyTorch: the public face.

    import efficientdet as ed
    ed.load("people").predict("photo.jpg").draw().save("out.jpg")

Importing this package imports neither torch nor numpy: every name below is fetched on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from efficientdet.version import __version__

if TYPE_CHECKING:
    from efficientdet import boxes, errors, family, weights
    from efficientdet.detections import Detections
    from efficientdet.evaluation.coco_ap import Metrics
    from efficientdet.evaluation.evaluate import evaluate
    from efficientdet.exporting.export import export
    from efficientdet.exporting.quantize import quantize
    from efficientdet.inference.detector import Detector, load
    from efficientdet.network.efficientdet import EfficientDet
    from efficientdet.research.ablation import ablate
    from efficientdet.training.config import TrainConfig
    from efficientdet.training.run import train
    from efficientdet.training.run_folder import TrainingRun
    from efficientdet.weights.create import create_model

_SUBMODULES = ("boxes", "errors", "family", "weights")

# Public name -> the module that defines it; the type checker reads the same from the block above.
_HOMES = {
    "Detections": "efficientdet.detections",
    "Detector": "efficientdet.inference.detector",
    "EfficientDet": "efficientdet.network.efficientdet",
    "Metrics": "efficientdet.evaluation.coco_ap",
    "TrainConfig": "efficientdet.training.config",
    "TrainingRun": "efficientdet.training.run_folder",
    "ablate": "efficientdet.research.ablation",
    "create_model": "efficientdet.weights.create",
    "evaluate": "efficientdet.evaluation.evaluate",
    "export": "efficientdet.exporting.export",
    "load": "efficientdet.inference.detector",
    "quantize": "efficientdet.exporting.quantize",
    "train": "efficientdet.training.run",
}

__all__ = [
    "Detections",
    "Detector",
    "EfficientDet",
    "Metrics",
    "TrainConfig",
    "TrainingRun",
    "__version__",
    "ablate",
    "boxes",
    "create_model",
    "errors",
    "evaluate",
    "export",
    "family",
    "load",
    "quantize",
    "train",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, and keep it."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, fetched or not."""
    return sorted(__all__)
