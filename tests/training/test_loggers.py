from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from efficientdet.errors import MissingExtraError, SettingError, UnknownNameError
from efficientdet.training.config import TrainConfig
from efficientdet.training.loggers import contact_sheet
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun


@pytest.fixture
def run(shapes: ModuleType, data: Path, tmp_path: Path) -> Callable[..., TrainingRun]:
    def start(**settings: Any) -> TrainingRun:
        return train(shapes.TINY, data, out=tmp_path / "run", **{**shapes.SETTINGS, **settings})

    return start


def test_an_unknown_logger_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown logger 'wandbb'; did you mean 'wandb'"):
        TrainConfig(logger=("csv", "wandbb"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_gives_its_command(
    name: str, run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{name} is not installed; run: pip install 'efficientdet\[{name}\]'"):
        run(logger=(name,))


def test_only_the_loggers_that_are_named_write(run: Callable[..., TrainingRun]) -> None:
    done = run(logger=("csv",), epochs=1)
    assert (done.folder / "log" / "metrics.csv").is_file()
    assert not list((done.folder / "log").glob("events*"))


# Images


def test_the_first_batches_and_predictions_are_drawn(trained: TrainingRun) -> None:
    names = sorted(path.name for path in (trained.folder / "images").iterdir())
    assert names == ["predictions.jpg", "train_batch_1.jpg", "train_batch_2.jpg", "train_batch_3.jpg"]
    with Image.open(trained.folder / "images" / "train_batch_1.jpg") as image:
        assert image.size == (640, 320)  # a batch of two
        pixels = np.asarray(image.convert("RGB")).astype(int)
    background = np.abs(pixels - (40, 40, 90)).max(2) < 16  # of the shapes, in the colors that the file has
    assert background.mean() > 0.005


def test_tensorboard_takes_the_images(trained: TrainingRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.folder / "log"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"predictions", "train_batch_1", "train_batch_2", "train_batch_3"}
    assert len(events.Images("predictions")) == 2  # one an evaluation
    assert "val/ap" in events.Tags()["scalars"]


def test_a_contact_sheet_has_rows_of_shrunk_tiles() -> None:
    tiles = [Image.new("RGB", (640, 320), color) for color in ("red", "lime", "blue")]
    sheet = contact_sheet(tiles, 2)
    assert sheet.size == (640, 640)
    assert [sheet.getpixel(place) for place in ((10, 10), (330, 10), (10, 330))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255),
    ]  # fmt: skip


# Other libraries


def test_wandb_keeps_an_offline_log_and_resumes_it(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is missing (extra wandb)")
    program = """
import sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import shapes
from efficientdet.training.run import train
warnings.simplefilter("ignore")
settings = {**shapes.SETTINGS, "logger": ("csv", "wandb"), "epochs": int(sys.argv[4])}
train(shapes.TINY, Path(sys.argv[1]), out=Path(sys.argv[2]), resume=sys.argv[4] != "1", **settings)
"""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    data, out = _places(run)
    for epochs in ("1", "2"):
        arguments = [str(data), str(out), str(Path(__file__).parents[1]), epochs]
        subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    identity = (out / "log" / "wandb.txt").read_text()
    logs = sorted((out / "log" / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(logs) == 2
    assert all(list(log.glob("*.wandb")) for log in logs)
    assert [path for path in logs[0].rglob("*.png") if "train_batch_1" in path.name]


def _places(run: Callable[..., TrainingRun]) -> tuple[Path, Path]:
    shapes_data, out = (cell.cell_contents for cell in run.__closure__ or () if isinstance(cell.cell_contents, Path))
    return shapes_data, out / "run"


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of its database
def test_mlflow_keeps_a_log_in_the_folder_and_resumes_it(
    run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is missing (extra mlflow)")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = run(logger=("mlflow",), epochs=1)
    done = run(logger=("mlflow",), epochs=2, resume=True)
    client = mlflow.MlflowClient(f"sqlite:///{(done.folder / 'log' / 'mlflow.db').resolve()}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "efficientdet"]
    (logged,) = client.search_runs([experiment.experiment_id])
    assert "val/ap" in logged.data.metrics
    assert logged.data.params["batch_size"] == "2"
    assert {one.path for one in client.list_artifacts(logged.info.run_id)} >= {"train_batch_1.png", "predictions.png"}


# Callbacks


class _Counts(Callback):
    def __init__(self) -> None:
        self.steps = 0
        self.aps: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.aps.append(float(trainer.callback_metrics["val/ap"]))


def test_callbacks_of_lightning_are_called(run: Callable[..., TrainingRun]) -> None:
    counts = _Counts()
    done = run(callbacks=[counts], epochs=2)
    assert counts.steps == 6
    assert done.metrics is not None
    assert counts.aps[-1] == pytest.approx(done.metrics.ap)
    with (done.folder / "log" / "metrics.csv").open(newline="") as file:
        assert len([row for row in csv.DictReader(file) if row.get("val/ap")]) == 2


def test_what_is_no_callback_is_named(run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="callbacks holds str, which is none of Lightning's"):
        run(callbacks=["early stopping"])
    unpicklable = _Counts()
    unpicklable.aps = lambda: None  # type: ignore[assignment]
    with pytest.raises(SettingError, match="callback _Counts cannot be copied to other devices"):
        run(callbacks=[unpicklable], devices=2)
    assert not (tmp_path / "run").exists()
