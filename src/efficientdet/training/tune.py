"""tune: an Optuna study over `train`, which resumes from its database and stops trials that fall behind.

Imports neither torch nor numpy before a study begins.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from efficientdet.errors import DataError, EfficientDetError, SettingError, require
from efficientdet.family import ModelSpec
from efficientdet.settings import Settings, changed, divided, setting
from efficientdet.training.config import TrainConfig, TrainOptions, as_options
from efficientdet.training.recipes import recipe_settings

if TYPE_CHECKING:
    import optuna
    from lightning.pytorch.callbacks import Callback
    from typing_extensions import Unpack

# Ranges of the numbers that are sought, all on a logarithmic scale; those of learning rate and weight decay in units of
# the default. And the choices of the jitter.
RANGES = {"learning_rate": (0.1, 5.0), "backbone_rate": (0.05, 1.0), "weight_decay": (0.1, 10.0)}
SCALE_JITTERS = ("0.5 1.5", "0.8 1.25", "0.3 2.0", "1.0 1.0")
SOUGHT = (*RANGES, "scale_jitter")
# Trials that are never stopped early, and evaluations before any is.
WHOLE_TRIALS, FIRST_EVALUATIONS = 4, 2


@dataclass(frozen=True)
class TuneSettings(Settings):
    """How long settings are sought."""

    trials: int = setting(20, "Trials of the study in all, those of earlier calls included.", minimum=1)
    seed_of_search: int = setting(0, "Seed of the search; --seed is that of each trial's training.", minimum=0)


class TuneOptions(TrainOptions, total=False):
    """The fields of `TuneSettings` and `TrainConfig` as keywords, for type checkers."""

    trials: int
    seed_of_search: int


class TunedRun(NamedTuple):
    """What a study has found.

    Attributes:
        folder: of the study: `study.db`, and a run for each trial in `trials/`.
        settings: of the best trial, as `train` takes them.
        best_ap: AP on the validation split that it reached.
        trials: number of trials that have ended, those that were stopped early included.
        command: trains with these settings.
    """

    folder: Path
    settings: dict[str, Any]
    best_ap: float
    trials: int
    command: str


def tune(
    model: str | ModelSpec,
    data: str | Path,
    out: str | Path = "tuning",
    *,
    recipe: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Unpack[TuneOptions],
) -> TunedRun:
    """Seek the learning rate, weight decay, backbone rate and scale jitter with the best AP on the validation split.

    Trials that are worse than the median of the others after as many evaluations are stopped. Called again with the
    same `out`, it goes on where it was, up to `trials` trials in all; a trial that was interrupted is begun anew.

    Args:
        model: name of the family or a spec.
        data: folder with a `train` and a `val` split.
        out: folder of the study.
        recipe: as in `train`; what it sets can still be sought.
        say: called with a line after each trial.
        **settings: fields of `TuneSettings`; and of `TrainConfig`, which all trials share. A setting that is given is
            not sought.

    Returns:
        The best settings.

    Raises:
        DataError: the dataset is at fault, or has no validation split.
        SettingError: a setting is out of range, all that could be sought are given, or the study in `out` is of other
            settings.
        EfficientDetError: not one trial has reached its end.
        MissingExtraError: Optuna is not installed.
    """
    library = require("optuna", "tune")
    from efficientdet.training.run_folder import decisive_settings

    own, training = divided(settings, TuneSettings, TrainConfig)
    chosen, shared = changed(TuneSettings(), own), {**(recipe_settings(recipe) if recipe else {}), **training}
    config = changed(TrainConfig(), shared)
    sought = [name for name in SOUGHT if name not in training]
    if not sought:
        raise SettingError(f"nothing is left to seek: {', '.join(SOUGHT)} are all given")
    folder = Path(out)
    name = model if isinstance(model, str) else model.name
    facts = {"model": name, "data": Path(data).name, "sought": sought, **decisive_settings(config)}
    library.logging.set_verbosity(library.logging.WARNING)
    study = _open_study(library, folder, chosen.seed_of_search, json.loads(json.dumps(facts)))

    def objective(trial: optuna.Trial) -> float:
        values = {one: suggest(trial, one, config) for one in sought}
        try:
            return _train(model, data, folder / "trials" / str(trial.number), trial, {**shared, **values})
        except SettingError as error:  # such as a rate with which training diverges
            say(f"trial {trial.number}: {error}")
            raise library.TrialPruned from error

    def report(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        result = f"AP {trial.value:.3f}" if trial.state.name == "COMPLETE" else trial.state.name.lower()
        say(f"trial {trial.number}: {result}, {json.dumps(trial.params)}")

    left = chosen.trials - len(_ended(library, study))
    if left > 0:
        study.optimize(objective, n_trials=left, callbacks=[report])
    return _result(library, study, folder, name, data, shared)


def suggest(trial: optuna.Trial, name: str, config: TrainConfig) -> Any:
    """A value of a setting, for a trial."""
    if name == "scale_jitter":
        return _jitter(trial.suggest_categorical(name, SCALE_JITTERS))
    default = {"learning_rate": config.peak_learning_rate(), "weight_decay": config.decay()}.get(name, 1.0)
    low, high = (factor * default for factor in RANGES[name])
    return trial.suggest_float(name, low, high, log=True)


def _jitter(text: str) -> tuple[float, float]:
    low, high = map(float, text.split())
    return low, high


def _open_study(library: Any, folder: Path, seed: int, settings: dict[str, Any]) -> optuna.Study:
    """The study in the folder's database; trials that were interrupted are queued once more.

    Raises:
        SettingError: the trials of the study share other settings than these.
    """
    from efficientdet.training.run_folder import refuse_other_settings

    folder.mkdir(parents=True, exist_ok=True)
    study: optuna.Study = library.create_study(
        study_name="efficientdet", storage=f"sqlite:///{(folder / 'study.db').resolve()}", direction="maximize",
        load_if_exists=True, sampler=library.samplers.TPESampler(seed=seed),
        pruner=library.pruners.MedianPruner(n_startup_trials=WHOLE_TRIALS, n_warmup_steps=FIRST_EVALUATIONS),
    )  # fmt: skip
    refuse_other_settings(folder, study.user_attrs.get("settings", settings), settings)
    study.set_user_attr("settings", settings)
    for trial in study.get_trials(states=[library.trial.TrialState.RUNNING]):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=library.trial.TrialState.FAIL)
    return study


def _train(
    model: str | ModelSpec, data: str | Path, folder: Path, trial: optuna.Trial, settings: dict[str, Any]
) -> float:
    """Train a trial; its best AP."""
    from efficientdet.training.run import train

    run = train(model, data, out=folder, quiet=True, callbacks=[_report_to(trial)], **settings)
    if run.report["best_ap"] is None:
        raise DataError(f"{data}: a study needs a validation split, and there is none")
    return float(run.report["best_ap"])


def _report_to(trial: optuna.Trial) -> Callback:
    import optuna
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback

    class Report(Callback):
        """Tells the study the AP of each evaluation, and ends a trial that falls behind."""

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """Report; stop where the study says so."""
            metrics: Any = pl_module.metrics
            trial.report(metrics.ap, trainer.current_epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    return Report()


def _result(
    library: Any, study: optuna.Study, folder: Path, name: str, data: str | Path, training: dict[str, Any]
) -> TunedRun:
    complete = study.get_trials(states=[library.trial.TrialState.COMPLETE])
    if not complete:
        raise EfficientDetError(f"{folder}: no trial has reached its end; see the messages above")
    best = study.best_trial
    settings = {one: _jitter(value) if one == "scale_jitter" else value for one, value in best.params.items()}
    words = ["efficientdet", "train", name, "--data", str(data), *as_options({**training, **settings})]
    return TunedRun(folder, settings, float(best.value or 0.0), len(_ended(library, study)), shlex.join(words))


def _ended(library: Any, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that have reached their end or were stopped early; those that were interrupted do not count."""
    states = library.trial.TrialState
    ended: list[optuna.trial.FrozenTrial] = study.get_trials(states=[states.COMPLETE, states.PRUNED], deepcopy=False)
    return ended
