"""The folder of a training run, and the file of its settings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from efficientdet.atomic_write import write_text
from efficientdet.errors import EfficientDetError, SettingError
from efficientdet.evaluation.coco_ap import Metrics
from efficientdet.settings import to_dict
from efficientdet.training.config import FILES, TrainConfig
from efficientdet.weights.checkpoint import CheckpointInfo

CONFIG_FILE = "config.json"
RESUME_FILE = "resume.ckpt"
# Settings that do not change the weights; a resumed run may have others.
WITHOUT_EFFECT = ("workers", "cache", "save_every", "skip_missing")


@dataclass(frozen=True)
class TrainingRun:
    """What a training run leaves behind.

    Attributes:
        folder: holds `best.safetensors`, `last.safetensors`, `metrics.json`, `report.json`, `log/metrics.csv`,
            TensorBoard's events, `config.json`, `resume.ckpt`.
        best: the checkpoint with the best AP on the validation split; without such a split, the last one.
        last: the checkpoint of the last epoch.
        metrics: of the last evaluation; None without a validation split.
        report: what was read, skipped and reached, as plain types.
    """

    folder: Path
    best: Path
    last: Path
    metrics: Metrics | None
    report: dict[str, Any]


class RunSettings(NamedTuple):
    """What `config.json` holds: what a run was started with."""

    config: TrainConfig
    info: CheckpointInfo


def choose_folder(out: str | Path | None, resume: bool) -> Path:
    """The folder of a run: `out`, or the next free `runs/N`.

    Raises:
        SettingError: there is no run to resume, or there is one but it should not be resumed.
    """
    if out is None:
        if resume:
            raise SettingError("resume needs out, the folder of the run to resume")
        return next(folder for number in itertools.count(1) if not (folder := Path("runs", str(number))).exists())
    folder = Path(out)
    if resume and not (folder / CONFIG_FILE).is_file():
        raise SettingError(f"{folder}: no run to resume there ({CONFIG_FILE} is missing)")
    if not resume and (folder / CONFIG_FILE).exists():
        raise SettingError(f"{folder} holds a run already; resume it, or choose another folder for out")
    return folder


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Write what a run is started with."""
    content = {"config": to_dict(settings.config), "checkpoint": json.loads(settings.info.to_json())}
    write_text(folder / CONFIG_FILE, json.dumps(content, indent=2, sort_keys=True))


def read_settings(folder: Path) -> RunSettings:
    """What a run was started with.

    Raises:
        SettingError: the file is damaged; says what to do.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        info = CheckpointInfo.from_json(json.dumps(content["checkpoint"]), path)
        return RunSettings(TrainConfig(**content["config"]), info)
    except (EfficientDetError, LookupError, TypeError, ValueError, OSError) as error:
        raise SettingError(
            f"{path}: damaged, so the run cannot be resumed ({error}); start it again in another folder"
        ) from error


def check_same(folder: Path, started: RunSettings, resumed: RunSettings) -> None:
    """Refuse to resume a run with other settings, model or classes than it was started with.

    Raises:
        SettingError: lists what differs.
    """
    refuse_other_settings(folder, _decisive(started), _decisive(resumed))


def _decisive(settings: RunSettings) -> dict[str, Any]:
    info = settings.info
    model = {f"model {name}": value for name, value in info.spec.to_dict().items()}
    classes = {"class_names": info.class_names, "category_ids": info.category_ids}
    return {**decisive_settings(settings.config), **model, **classes}


def decisive_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the weights; files by name alone, since a run may be resumed from another folder."""
    values = {name: value for name, value in to_dict(config).items() if name not in WITHOUT_EFFECT}
    return values | {name: values[name] and Path(values[name]).name for name in FILES}


def refuse_other_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder with other settings than before.

    Raises:
        SettingError: lists what differs.
    """
    changed = [f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in now if before.get(name) != now[name]]
    if changed:
        raise SettingError(f"{folder}: the run was started with other settings: {', '.join(changed)}")
