"""The page at the end of a training: the curves of the run, and the evaluation of the best checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from efficientdet.data.read_split import read_split
from efficientdet.errors import EfficientDetError
from efficientdet.training import callbacks
from efficientdet.training.run import train
from efficientdet.training.run_folder import TrainingRun
from efficientdet.training.run_page import RUN_PAGE, read_history, write_run_page


def test_the_page_shows_the_run_and_its_best_checkpoint(
    trained: TrainingRun, look_at: Callable[..., list[str]]
) -> None:
    page = (trained.folder / RUN_PAGE).read_text()
    assert "Training run frozen" in page and "Loss by epoch" in page and "Average precision by epoch" in page
    assert f"<dt>AP</dt><dd>{trained.report['best_ap']:.3f}" in page
    commands = re.findall(r"<code>(efficientdet explain .*?)</code>", page)
    assert all(str(trained.best) in one for one in commands)
    assert look_at(trained.folder / RUN_PAGE, 390, "dark") == []


def test_the_history_is_that_of_the_log(trained: TrainingRun) -> None:
    history = read_history(trained.folder / "log" / "metrics.csv")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(row["train/loss"] > 0 for row in history)
    assert [("val/ap" in row) for row in history] == [False, True, True]
    assert trained.metrics is not None and history[-1]["val/ap"] == pytest.approx(trained.metrics.ap)


def test_the_mean_of_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/ap\n0,9,3.0,\n0,19,1.0,\n0,20,,0.25\n1,29,0.5,\n")
    first, second = read_history(path)
    assert (first["epoch"], first["train/loss"], first["val/ap"]) == (1, 2, 0.25)
    assert (second["epoch"], second["train/loss"], "val/ap" in second) == (2, 0.5, False)
    assert read_history(tmp_path / "none.csv") == []


def test_a_best_checkpoint_from_before_a_resume_is_evaluated_again(trained: TrainingRun, data: Path) -> None:
    page = trained.folder / RUN_PAGE
    before = page.read_text()
    page.unlink()
    write_run_page(trained, read_split(data, "val"), None)
    again = page.read_text()
    headline = re.compile(r"<dt>AP</dt><dd>([0-9.]+)")
    assert headline.findall(again) == headline.findall(before)


def test_a_run_without_validation_has_its_curves_and_a_page_that_fails_costs_no_run(
    shapes: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**shapes.SETTINGS, "epochs": 1}
    alone = train(shapes.TINY, data / "train.json", out=tmp_path / "alone", **settings)
    assert alone.metrics is None
    page = (alone.folder / RUN_PAGE).read_text()
    assert "no validation split" in page and "Loss by epoch" in page

    def fail(*_: object) -> None:
        raise EfficientDetError("no room")

    monkeypatch.setattr(callbacks, "write_run_page", fail)
    run = train(shapes.TINY, data / "train.json", out=tmp_path / "other", **settings)
    assert run.best.is_file() and not (run.folder / RUN_PAGE).exists()
