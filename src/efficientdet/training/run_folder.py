"""The folder of a training run: claimed by one run alone, with its settings and the state to resume from."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from efficientdet.atomic_write import write_text
from efficientdet.data.records import Records
from efficientdet.errors import EfficientDetError, SettingError
from efficientdet.evaluation.coco_ap import Metrics
from efficientdet.settings import to_dict
from efficientdet.text import printable
from efficientdet.training.config import FILES, TrainConfig
from efficientdet.weights.info import CheckpointInfo

CONFIG_FILE = "config.json"
RESUME_FILE = "resume.ckpt"
# The state that was saved before that.
SPARE_FILE = "resume.previous.ckpt"
# There while a process works on the run; holds its number.
LOCK_FILE = "run.lock"
# Settings that do not change the weights; a resumed run may have others.
WITHOUT_EFFECT = ("workers", "cache", "save_every", "skip_missing", "logger")
# Settings that a resumed run may have others of, although its weights are then not those of an uninterrupted one.
CHANGEABLE = ("epochs", "minutes", "patience", "devices", "batch_size", "accumulate", "batch_norm")


@dataclass(frozen=True)
class TrainingRun:
    """What a training run leaves behind.

    Attributes:
        folder: holds `best.safetensors`, `last.safetensors`, `metrics.json`, `report.json`, `report.html`,
            `log/metrics.csv`, TensorBoard's events, `images/`, `config.json`, `resume.ckpt`.
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


@contextmanager
def claim_folder(out: str | Path | None, resume: bool) -> Iterator[Path]:
    """The folder of a run: `out`, or the next free `runs/N`, claimed so that no other run takes it.

    An empty `config.json`, made in one step, is the claim. It is withdrawn if the run fails before it has written its
    settings there. Within this context no other process can resume the run.

    Raises:
        SettingError: there is no run to resume, there is one and it is not to be resumed, another process works on it,
            or the folder cannot be made.
    """
    if resume:
        if out is None:
            raise SettingError("resume needs out, the folder of the run to resume")
        if not (Path(out) / CONFIG_FILE).is_file():
            raise SettingError(f"{out}: no run to resume there ({CONFIG_FILE} is missing)")
        with _locked(Path(out)):
            for unfinished in Path(out).glob(".*.part"):  # what a killed run was writing
                shutil.rmtree(unfinished, ignore_errors=True)
            yield Path(out)
        return
    folder, is_new = _claim(Path(out)) if out is not None else _claim_next()
    try:
        with _locked(folder):
            yield folder
    except BaseException:
        with suppress(OSError):
            if not (folder / CONFIG_FILE).read_bytes():
                (folder / CONFIG_FILE).unlink()
                if is_new:
                    folder.rmdir()
        raise


def _claim(folder: Path) -> tuple[Path, bool]:
    """Claim this folder; also returns whether it is new."""
    try:
        is_new = not folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (folder / CONFIG_FILE).touch(exist_ok=False)
            return folder, is_new
    except (OSError, ValueError) as error:
        raise SettingError(f"{printable(folder)}: cannot be used as out ({printable(error)})") from error
    raise SettingError(f"{folder} holds a run already; resume it, or choose another folder for out")


def _claim_next() -> tuple[Path, bool]:
    for number in itertools.count(1):
        folder = Path("runs", str(number))
        if not folder.exists():
            with suppress(SettingError):  # another run was faster
                return _claim(folder)
    raise AssertionError  # numbers do not end


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes off a run. The system takes the lock back from a process that ends, however it does.

    Raises:
        SettingError: another process works on the run, or no file can be written there.
    """
    path = folder / LOCK_FILE
    try:
        file = _open_locked(path)
    except OSError as error:
        raise SettingError(f"{folder}: cannot be used as out ({printable(error)})") from error
    with file:
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                path.unlink()


def _open_locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="ascii")
        try:
            _lock(file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BlockingIOError as error:
            file.seek(0)
            number = file.read() or "unknown"
            file.close()
            raise SettingError(
                f"{path.parent}: another process works on this run (number {number}); wait until it has ended"
            ) from error
        file.close()  # another process held this file, and has just removed it


def _lock(file: IO[str]) -> None:
    """Lock a file for this process alone, without its children.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 20)  # what lies before can be read by others
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(*error.args) from error
        # Some network file systems know no locks; there nothing keeps a run from being resumed twice.


class RunSettings(NamedTuple):
    """What `config.json` holds: what a run was started with.

    Attributes:
        config: the settings.
        info: network, classes and preprocessing.
        data: number and hash of images and boxes, by what they are.
    """

    config: TrainConfig
    info: CheckpointInfo
    data: dict[str, list[Any]]


def fingerprint(train: Records, val: Records | None) -> dict[str, list[Any]]:
    """Number and hash of the images and boxes of each split; images by id, name and sizes, not by their pixels."""
    found = {}
    for split, records in (("train", train), ("val", val)):
        images, boxes = hashlib.sha256(), hashlib.sha256()
        for image in records.images if records else ():
            facts = (image.image_id, image.path.name, image.image_size, image.path.stat().st_size)
            images.update(json.dumps(facts).encode())
            for array in (image.boxes_xyxy, image.labels, image.is_ignored):
                boxes.update(json.dumps(array.tolist()).encode())
        all_boxes = sum(len(image.labels) for image in records.images) if records else 0
        found[f"{split} images"] = [len(records) if records else 0, images.hexdigest()]
        found[f"{split} boxes"] = [all_boxes, boxes.hexdigest()]
    return found


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Write what a run is started with."""
    config, info = to_dict(settings.config), json.loads(settings.info.to_json())
    content = {"config": config, "checkpoint": info, "data": settings.data}
    write_text(folder / CONFIG_FILE, json.dumps(content, indent=2, sort_keys=True))


def read_settings(folder: Path) -> RunSettings | None:
    """What a run was started with; None if it was stopped before it began.

    Raises:
        SettingError: the file is damaged; says what to do.
    """
    path = folder / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
        if not text:
            return None
        content = json.loads(text)
        info = CheckpointInfo.from_json(json.dumps(content["checkpoint"]), path)
        data = {name: [int(count), str(digest)] for name, (count, digest) in content["data"].items()}
        return RunSettings(TrainConfig(**content["config"]), info, data)
    except (EfficientDetError, LookupError, AttributeError, TypeError, ValueError, RecursionError, OSError) as error:
        raise SettingError(
            f"{path}: damaged, so the run cannot be resumed ({printable(error)}); start it again in another folder"
        ) from error


def resumed_config(folder: Path, started: TrainConfig, config: TrainConfig, typed: Collection[str]) -> TrainConfig:
    """The settings of a resumed run: a step sees as many images as before, on however many devices.

    Args:
        folder: of the run.
        started: what it was started with.
        config: the same with the changes that are asked for.
        typed: names of the settings that are asked for.

    Raises:
        SettingError: a step would see another number of images, or there would be fewer epochs.
    """
    changes: dict[str, Any] = {}
    if started.minutes and config.minutes and "epochs" not in typed:
        changes["epochs"] = max(started.epochs, round(started.epochs * config.minutes / started.minutes))
    elif config.epochs < started.epochs:
        raise SettingError(
            f"{folder}: epochs was {started.epochs}, now {config.epochs}; a resumed run can only have more"
        )
    images = started.images_at_once * started.devices * started.accumulate
    size = started.images_at_once if isinstance(config.batch_size, str) else config.batch_size
    if config.devices != started.devices and ("batch_size" not in typed or size == started.batch_size):
        size = max(1, started.images_at_once * started.devices // config.devices)
    accumulate = config.accumulate
    if "accumulate" not in typed or (size, config.devices) != (started.batch_size, started.devices):
        accumulate = max(1, images // (size * config.devices))
    if size * config.devices * accumulate != images:
        raise SettingError(
            f"{folder}: a step sees {images} images, which batch_size {size} on {config.devices} devices cannot give; "
            f"choose numbers of which {images} is a multiple"
        )
    if size != started.images_at_once and "batch_norm" not in typed:  # auto could mean another in other batches
        changes["batch_norm"] = "frozen" if started.freezes_batch_norm() else "train"
    return dataclasses.replace(config, batch_size=size, accumulate=accumulate, **changes)


def check_same(folder: Path, started: RunSettings, resumed: RunSettings, say: Callable[[str], None]) -> None:
    """Refuse to resume a run with other settings, another model or other data than it was started with.

    Args:
        folder: of the run.
        started: what it was started with.
        resumed: what it is to go on with.
        say: called with a line if they differ in what a resumed run may change.

    Raises:
        SettingError: lists what differs.
    """
    refuse_other_settings(folder, _decisive(started), _decisive(resumed))
    changed = []
    for name, (count, digest) in resumed.data.items():
        then, digest_then = started.data.get(name, [0, ""])
        if digest != digest_then:
            what = f"were {then}, now {count}" if count != then else f"are {count} as before, but others"
            changed.append(f"{name} {what}")
    if changed:
        raise SettingError(f"{folder}: the dataset has changed since the run was started: {', '.join(changed)}")
    before, now = to_dict(started.config), to_dict(resumed.config)
    differs = [f"{name} {now[name]} instead of {before[name]}" for name in CHANGEABLE if before[name] != now[name]]
    if differs:
        say(f"resumed with {', '.join(differs)}: the weights will not be those of an uninterrupted run")


def _decisive(settings: RunSettings) -> dict[str, Any]:
    info, config = settings.info, settings.config
    model = {f"model {name}": value for name, value in info.spec.to_dict().items()}
    classes = {"class_names": info.class_names, "category_ids": info.category_ids}
    batch_norm = {"batch_norm": "frozen" if config.freezes_batch_norm() else "train"}
    values = {name: value for name, value in decisive_settings(config).items() if name not in CHANGEABLE}
    return {**values, **batch_norm, **model, **classes}


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


def find_state(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest state of a run that is whole; None if none was saved yet.

    Args:
        folder: of the run.
        say: called with a line if the newest one is damaged.

    Raises:
        SettingError: all are damaged.
    """
    faults: list[str] = []
    for path in (folder / RESUME_FILE, folder / SPARE_FILE):
        if path.is_file():
            fault = _damage(path)
            if fault is None:
                if faults:
                    say(f"{faults[0]}; resuming from the save before it, {path.name}")
                return path
            faults.append(f"{path}: damaged ({fault})")
    if faults:
        raise SettingError(f"{'; '.join(faults)}; start the run again in another folder")
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a saved state, by the checksums that it carries; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as file:
            entry = file.testzip()
        if entry is not None:
            return f"wrong checksum of {entry}"
        int(torch.load(path, mmap=True, weights_only=True)["global_step"])
    except Exception as error:  # bytes at random can raise anything in these two libraries
        return f"{type(error).__name__}: {printable(error)}"
    return None
