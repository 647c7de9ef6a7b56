from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efficientdet.errors import DataError, MissingExtraError, SettingError
from efficientdet.training.config import TrainConfig
from efficientdet.training.tune import SOUGHT, TunedRun, tune

optuna = pytest.importorskip("optuna", reason="optuna is missing (extra tune)")


@pytest.fixture
def study(shapes: ModuleType, data: Path, tmp_path: Path) -> Callable[..., TunedRun]:
    def start(**settings: Any) -> TunedRun:
        fixed = {name: value for name, value in shapes.SETTINGS.items() if name != "quiet"}
        chosen = {**fixed, "epochs": 1, "out": tmp_path / "study", **settings}
        return tune(shapes.TINY, chosen.pop("data", data), **chosen)

    return start


def test_a_study_resumes_and_counts_all_its_trials(study: Callable[..., TunedRun], tmp_path: Path) -> None:
    lines: list[str] = []
    found = study(trials=2, say=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["trial 0", "trial 1"]
    assert set(found.settings) == set(SOUGHT)
    TrainConfig(**found.settings)
    assert found.command.startswith("efficientdet train lite0 --data ")
    assert "--scale-jitter " in found.command
    again = study(trials=3, say=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["trial 0", "trial 1", "trial 2"]
    assert again.trials == 3
    assert sorted(path.name for path in (tmp_path / "study" / "trials").iterdir()) == ["0", "1", "2"]
    assert study(trials=3) == again  # nothing is left to do


def test_the_trial_with_the_best_ap_is_the_result(study: Callable[..., TunedRun], tmp_path: Path) -> None:
    found = study(trials=3)
    reports = {
        path.parent.name: json.loads(path.read_text())["best_ap"]
        for path in (tmp_path / "study" / "trials").glob("*/report.json")
    }
    assert len(reports) == 3
    assert found.best_ap == max(reports.values())


def test_a_setting_that_is_given_is_not_sought(study: Callable[..., TunedRun]) -> None:
    found = study(trials=1, learning_rate=0.01, scale_jitter=(0.8, 1.2))
    assert set(found.settings) == {"weight_decay", "backbone_rate"}
    assert "--learning-rate 0.01" in found.command
    with pytest.raises(SettingError, match="learning_rate was 0.01, now None"):
        study(trials=1, scale_jitter=(0.8, 1.2))


def test_nothing_to_seek(study: Callable[..., TunedRun], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing is left to seek"):
        study(learning_rate=0.01, scale_jitter=(0.8, 1.2), weight_decay=0.0, backbone_rate=0.5)
    assert not (tmp_path / "study").exists()


def test_a_trial_that_falls_behind_is_stopped(
    study: Callable[..., TunedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every_second(self: Any) -> bool:
        return bool(self.number % 2)

    monkeypatch.setattr(optuna.Trial, "should_prune", every_second)
    lines: list[str] = []
    found = study(trials=3, epochs=2, say=lines.append)
    assert [line.split(",")[0] for line in lines][1] == "trial 1: pruned"
    assert found.trials == 3
    assert not (tmp_path / "study" / "trials" / "1" / "report.json").exists()


class _KilledError(BaseException):
    pass


def test_an_interrupted_trial_is_begun_anew(
    study: Callable[..., TunedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **settings: Any) -> Any:
        raise _KilledError

    with monkeypatch.context() as patched, pytest.raises(_KilledError):
        patched.setattr("efficientdet.training.tune._train", killed)
        study(trials=2)
    database = optuna.load_study(study_name="efficientdet", storage=f"sqlite:///{tmp_path / 'study' / 'study.db'}")
    interrupted = database.trials[0]
    study(trials=1)
    trials = database.get_trials(deepcopy=False)
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert trials[1].params == interrupted.params


def test_without_a_validation_split(study: Callable[..., TunedRun], data: Path) -> None:
    with pytest.raises(DataError, match="a study needs a validation split"):
        study(data=data / "train.json", trials=1)


def test_a_trial_that_diverges_is_stopped_and_says_why(
    study: Callable[..., TunedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientdet.training import tune as module

    train = module._train

    def diverges(model: Any, data: Any, folder: Path, trial: Any, settings: Any) -> float:
        if trial.number == 0:
            raise SettingError("The run diverges: start again")
        return train(model, data, folder, trial, settings)

    monkeypatch.setattr(module, "_train", diverges)
    lines: list[str] = []
    assert study(trials=2, say=lines.append).trials == 2
    assert lines[0] == "trial 0: The run diverges: start again"
    assert lines[1].startswith("trial 0: pruned")


def test_without_optuna(study: Callable[..., TunedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efficientdet\[tune\]'"):
        study()
