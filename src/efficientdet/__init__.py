"""EfficientDet in PyTorch.

    import efficientdet as ed
    ed.load("people").predict("photo.jpg").draw().save("out.jpg")

`import efficientdet` loads neither torch nor numpy: each name below is imported when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from efficientdet.version import __version__

if TYPE_CHECKING:
    from efficientdet import boxes, data, errors, family, weights
    from efficientdet.cluster import predict_on_ray
    from efficientdet.data.quality.report import DataReport
    from efficientdet.data.read_split import read_split
    from efficientdet.data.records import Records
    from efficientdet.detections import Detections
    from efficientdet.evaluation.coco_ap import Metrics
    from efficientdet.evaluation.compare import Comparison, compare
    from efficientdet.evaluation.evaluate import evaluate
    from efficientdet.exporting.export import export, quantize
    from efficientdet.exporting.parity import ParityReport
    from efficientdet.inference.detector import Detector, load
    from efficientdet.inference.ensemble import ensemble
    from efficientdet.inference.settings import DetectorSettings, PostprocessSettings
    from efficientdet.network.efficientdet import EfficientDet
    from efficientdet.research.ablation import ablate
    from efficientdet.training.check_data import check_data
    from efficientdet.training.config import TrainConfig
    from efficientdet.training.run import train
    from efficientdet.training.run_folder import TrainingRun
    from efficientdet.training.tune import TunedRun, tune
    from efficientdet.video.frames import Video
    from efficientdet.video.write import VideoWriter
    from efficientdet.weights.create import create_model

_SUBMODULES = ("boxes", "data", "errors", "family", "weights")

# The public names of each module; the block above says the same to type checkers.
_MODULES = {
    "cluster": "predict_on_ray",
    "data.quality.report": "DataReport",
    "data.read_split": "read_split",
    "data.records": "Records",
    "detections": "Detections",
    "evaluation.coco_ap": "Metrics",
    "evaluation.compare": "Comparison compare",
    "evaluation.evaluate": "evaluate",
    "exporting.export": "export quantize",
    "exporting.parity": "ParityReport",
    "inference.detector": "Detector load",
    "inference.ensemble": "ensemble",
    "inference.settings": "DetectorSettings PostprocessSettings",
    "network.efficientdet": "EfficientDet",
    "research.ablation": "ablate",
    "training.check_data": "check_data",
    "training.config": "TrainConfig",
    "training.run": "train",
    "training.run_folder": "TrainingRun",
    "training.tune": "TunedRun tune",
    "video.frames": "Video",
    "video.write": "VideoWriter",
    "weights.create": "create_model",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Comparison", "DataReport", "Detections", "Detector", "DetectorSettings", "EfficientDet", "Metrics", "ParityReport",
    "PostprocessSettings", "Records", "TrainConfig", "TrainingRun", "TunedRun", "Video", "VideoWriter", "__version__",
    "ablate", "boxes", "check_data", "compare", "create_model", "data", "ensemble", "errors", "evaluate", "export",
    "family", "load", "predict_on_ray", "quantize", "read_split", "train", "tune", "weights",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, and keep it."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    if name in ("train", "tune"):  # before torch is imported
        importlib.import_module(f"{__name__}.inference.hardware").spin_briefly_if_busy()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
