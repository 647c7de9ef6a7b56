"""What a run leaves behind, and the names under which it lies there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientdet.evaluation.coco_ap import Metrics

CONFIG_FILE = "config.json"
RESUME_FILE = "resume.ckpt"


@dataclass(frozen=True)
class TrainingRun:
    """What a training run leaves behind.

    Attributes:
        folder: everything lies here: `best.safetensors`, `last.safetensors`, `metrics.json`, `log/metrics.csv`,
            TensorBoard's events, `config.json`, `resume.ckpt`.
        best: the checkpoint with the best AP on the validation split, or the last one where there is no such split.
        last: the checkpoint of the last epoch.
        metrics: of the last evaluation; None without a validation split.
        report: what was read, skipped and reached, in plain types.
    """

    folder: Path
    best: Path
    last: Path
    metrics: Metrics | None
    report: dict[str, Any]
