"""Ablations (section 5): feature networks and fusions trained on one dataset under one budget, and their table.

Each trial is a training run in a folder of its own, so a stopped ablation continues where it was.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typing_extensions import Unpack

from efficientdet.atomic_write import write_json, write_text
from efficientdet.errors import EfficientDetError, SettingError, find_name, require
from efficientdet.family import ModelSpec, find_spec
from efficientdet.inference.timing import forward_pass, time_in_turns
from efficientdet.network.count import count
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.research.settings import AblationOptions, AblationSettings
from efficientdet.settings import changed, divided
from efficientdet.text import in_markdown, markdown_table
from efficientdet.training.config import TrainConfig
from efficientdet.training.run_folder import CONFIG_FILE, decisive_settings, refuse_other_settings
from efficientdet.weights.checkpoint import read_info
from efficientdet.weights.info import CheckpointInfo

# The paper's choice: feature networks are compared with this fusion, fusions in this network.
BASE_NETWORK, BASE_FUSION = "bifpn", "fast"
SPEED_ROUNDS = 15
# What a run writes last.
METRICS_FILE = "metrics.json"


class Trial(NamedTuple):
    """One training run of the ablation: the settings that it decides."""

    feature_network: str
    fusion: str
    seed: int

    @property
    def pair(self) -> tuple[str, str]:
        """What the trials of a row share."""
        return self[:2]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.feature_network}-{self.fusion}-seed{self.seed}"


def plan_trials(settings: AblationSettings) -> list[Trial]:
    """List the trials, one seed after the other, so that a stopped ablation has trained every pair equally often.

    Raises:
        UnknownNameError: a feature network or a fusion is not known.
    """
    networks = [find_name("feature network", name, TOPOLOGIES) for name in settings.feature_networks or TOPOLOGIES]
    fusions = [find_name("fusion", name, FUSIONS) for name in settings.fusions or FUSIONS]
    if settings.every_pair:
        pairs = [(network, fusion) for network in networks for fusion in fusions]
    else:
        base_network = BASE_NETWORK if BASE_NETWORK in networks else networks[0]
        base_fusion = BASE_FUSION if BASE_FUSION in fusions else fusions[0]
        pairs = [(name, base_fusion) for name in networks] + [(base_network, name) for name in fusions]
    return [Trial(*pair, seed) for seed in range(settings.seeds) for pair in dict.fromkeys(pairs)]


def ablate(
    model: str | ModelSpec,
    data: str | Path,
    out: str | Path,
    *,
    say: Callable[[str], None] = print,
    **settings: Unpack[AblationOptions],
) -> list[dict[str, Any]]:
    """Train feature networks and fusions under the same budget, and compare them.

    Args:
        model: name of the family (`lite0`, ...) or a spec: backbone, width, depth and heads of every trial.
        data: what `train` takes; AP is measured once, on the validation split, after the last epoch.
        out: folder of the trials, `ablation.json` and `ablation.md`. Trials that have ended there are not trained
            again, stopped ones continue.
        say: called with lines on the progress.
        **settings: fields of `AblationSettings`, and of `TrainConfig` for every trial.

    Returns:
        The rows of the table, one for each pair of feature network and fusion; see `compare`.

    Raises:
        SettingError: a setting is unknown or out of range, or the trials in `out` have other settings.
        UnknownNameError: the model, a feature network or a fusion is not known.
        EfficientDetError: trials failed; names each and why. The others keep their results.
    """
    require("lightning.pytorch", "train")
    for name in Trial._fields:
        if name in settings:
            raise SettingError(f"{name} is decided by each trial; choose feature_networks, fusions and seeds")
    own, training = divided(settings, AblationSettings, TrainConfig)
    chosen = changed(AblationSettings(), own)
    config = changed(TrainConfig(), training)
    config = changed(config, {"evaluate_every": training.get("evaluate_every", config.epochs)})
    if config.minutes is not None:
        raise SettingError("minutes is no setting of an ablation, whose trials have the same epochs")
    trials = plan_trials(chosen)
    spec = find_spec(model) if isinstance(model, str) else model
    folder = Path(out)
    budget = {"model": spec.name, "data": Path(data).name, **_settings(config)}
    _check_budget(folder, budget)
    todo = [trial for trial in trials if not (folder / trial.name / METRICS_FILE).is_file()]
    say(f"{len(trials)} trials, {len(trials) - len(todo)} have ended already")
    failures = _run_all(todo, partial(_run, spec, data, folder, config), say)
    if failures:
        raise EfficientDetError(f"{len(failures)} of {len(trials)} trials failed:\n  " + "\n  ".join(failures))
    rows = compare(folder, trials)
    defaults = _settings(TrainConfig()) | {"epochs": None}  # always shown
    budget = {name: value for name, value in budget.items() if value != defaults.get(name)}
    write_json(folder / "ablation.json", {"budget": budget, "rows": rows})
    write_text(folder / "ablation.md", as_markdown(rows, budget))
    return rows


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that all trials share, in plain types."""
    settings: dict[str, Any] = json.loads(json.dumps(decisive_settings(config)))
    return {name: value for name, value in settings.items() if name not in (*Trial._fields, "evaluate_every")}


def _check_budget(folder: Path, budget: dict[str, Any]) -> None:
    """All trials of a folder share one budget: write it, or refuse another than the one written."""
    path = folder / "budget.json"
    if path.is_file():
        refuse_other_settings(folder, json.loads(path.read_text(encoding="utf-8")), budget)
    else:
        write_json(path, budget)


def _run_all(trials: Sequence[Trial], run: Callable[[Trial], float], say: Callable[[str], None]) -> list[str]:
    """Run the trials one after another; a line for each that failed."""
    failures = []
    started = time.perf_counter()
    for done, trial in enumerate(trials, 1):
        try:
            result = f"AP {run(trial):.3f}"
        # Whatever ended this trial is reported, and the others go on.
        except Exception as error:
            failures.append(f"{trial.name}: {type(error).__name__}: {error}")
            result = f"failed: {error}"
        left = (time.perf_counter() - started) / done * (len(trials) - done)
        say(f"{trial.name}: {result}; about {left / 60:.0f} min left")
    return failures


def _run(spec: ModelSpec, data: str | Path, folder: Path, config: TrainConfig, trial: Trial) -> float:
    """Train a trial, or resume it; gives its AP."""
    from efficientdet.training.run import train

    out = folder / trial.name
    config = changed(config, trial._asdict())
    run = train(spec, data, out=out, resume=(out / CONFIG_FILE).is_file(), quiet=True, config=config)
    if run.metrics is None:
        raise SettingError(f"{data} has no validation split, so there is no AP to compare")
    return run.metrics.ap


def compare(folder: Path, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row for each pair of feature network and fusion, from the trials that have ended in a folder.

    Returns:
        Rows with AP and AP50 (means over the seeds), the sample standard deviation of AP (None for one seed), AP by
        seed, the mean difference of AP to the row of BiFPN with fast fusion (without it, the first row), learnable
        parameters, multiply-adds at the image size of the training, and images/s of the network alone at batch 1, all
        networks timed in turns.
    """
    by_pair = {trial.pair: [other for other in trials if other.pair == trial.pair] for trial in trials}
    reference = (BASE_NETWORK, BASE_FUSION) if (BASE_NETWORK, BASE_FUSION) in by_pair else next(iter(by_pair))
    baseline = [_metrics(folder, trial)["ap"] for trial in by_pair[reference]]
    infos = [read_info(folder / own[0].name / "last.safetensors") for own in by_pair.values()]
    rows = []
    for (pair, own), info, speed in zip(by_pair.items(), infos, _images_per_second(infos), strict=True):
        metrics = [_metrics(folder, trial) for trial in own]
        aps = [entry["ap"] for entry in metrics]
        parameters, multiply_adds = count(info.spec, len(info.class_names))
        rows.append(
            {
                "feature_network": pair[0],
                "fusion": pair[1],
                "is_reference": pair == reference,
                "ap": statistics.mean(aps),
                "ap_deviation": statistics.stdev(aps) if len(aps) > 1 else None,
                "ap_by_seed": aps,
                "ap50": statistics.mean(entry["ap50"] for entry in metrics),
                "ap_difference": statistics.mean(a - b for a, b in zip(aps, baseline, strict=True)),
                "parameters": parameters,
                "multiply_adds": multiply_adds,
                "images_per_second": speed,
            }
        )
    return rows


def _metrics(folder: Path, trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / trial.name / METRICS_FILE).read_text(encoding="utf-8"))
    return found


def _images_per_second(infos: Sequence[CheckpointInfo]) -> list[float]:
    """Of the networks alone, whose speed does not depend on their weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    works = {str(i): forward_pass(info.spec, device, len(info.class_names)) for i, info in enumerate(infos)}
    return [1000 / statistics.median(times) for times in time_in_turns(works, device, SPEED_ROUNDS).values()]


def shown_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows of `compare` as a table shows them."""
    reference = next(row for row in rows if row["is_reference"])
    difference = f"to {reference['feature_network']}, {reference['fusion']}"
    return [
        {
            "feature network": row["feature_network"],
            "fusion": row["fusion"],
            "AP": f"{row['ap']:.3f}" + ("" if row["ap_deviation"] is None else f" ± {row['ap_deviation']:.3f}"),
            "by seed": ", ".join(f"{ap:.3f}" for ap in row["ap_by_seed"]),
            difference: f"{row['ap_difference']:+.3f}",
            "AP50": f"{row['ap50']:.3f}",
            "params M": f"{row['parameters'] / 1e6:.2f}",
            "GMAC": f"{row['multiply_adds'] / 1e9:.2f}",
            "images/s": f"{row['images_per_second']:.1f}",
        }
        for row in rows
    ]


def as_markdown(rows: Sequence[dict[str, Any]], budget: dict[str, Any]) -> str:
    """The table, with the budget above it and a word on noise below."""
    seeds = len(rows[0]["ap_by_seed"])
    settings = in_markdown(", ".join(f"{name} {value}" for name, value in budget.items()))
    return (
        f"Every row: {seeds} seed{'s' if seeds > 1 else ''} under one budget ({settings}).\n\n"
        f"{markdown_table(shown_rows(rows))}\n{_on_noise(rows)}\n"
    )


def _on_noise(rows: Sequence[dict[str, Any]]) -> str:
    deviations = [row["ap_deviation"] for row in rows if row["ap_deviation"] is not None]
    if not deviations:
        return "With one seed each, the noise is unknown: do not trust any difference here."
    pooled = statistics.mean(deviation**2 for deviation in deviations) ** 0.5
    seeds = len(rows[0]["ap_by_seed"])
    needed = 2 * pooled * (2 / seeds) ** 0.5
    above = [f"{row['feature_network']} with {row['fusion']}" for row in rows if abs(row["ap_difference"]) > needed]
    return (
        f"Runs that differ in the seed alone have a standard deviation of {pooled:.3f} AP (pooled), so with {seeds} "
        f"seeds a difference means something above {needed:.3f} (two standard errors). Above it: "
        f"{', '.join(above) or 'none'}."
    )
