"""Ablations (section 5): feature networks and fusions trained on one data set under one budget, and their table.

Every trial is a training run of its own in the output folder, so a stopped ablation goes on where it was.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from efficientdet.atomic_write import write_json, write_text
from efficientdet.errors import EfficientDetError, SettingError, require, unknown_name
from efficientdet.family import ModelSpec, find_spec
from efficientdet.network.count import count
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.training.run_folder import CONFIG_FILE
from efficientdet.weights.checkpoint import load_checkpoint, read_info

# What the paper's own networks are: each feature network is compared with this fusion, each fusion in this network.
OWN_NETWORK, OWN_FUSION = "bifpn", "fast"
SPEED_ROUNDS = 15


@dataclass(frozen=True)
class Trial:
    """One training run of the ablation."""

    feature_network: str
    fusion: str
    seed: int

    @property
    def name(self) -> str:
        """Also the name of its folder."""
        return f"{self.feature_network}-{self.fusion}-seed{self.seed}"


def plan_trials(feature_networks: Sequence[str], fusions: Sequence[str], seeds: int, every_pair: bool) -> list[Trial]:
    """List the trials, seed by seed, so that a stopped ablation has compared all that it could.

    Args:
        feature_networks: names of `topology.TOPOLOGIES`.
        fusions: names of `fusion.FUSIONS`.
        seeds: how many runs of each.
        every_pair: each network with each fusion; otherwise each network with the fast fusion (or the first one
            named), and each fusion in BiFPN (or the first network named), as the paper's Tables 5 and 6 do.

    Raises:
        UnknownNameError: a name is not known.
        SettingError: nothing to do, or fewer than one seed.
    """
    for kind, names, known in (
        ("feature network", feature_networks, tuple(TOPOLOGIES)), ("fusion", fusions, FUSIONS),
    ):  # fmt: skip
        if not names:
            raise SettingError(f"no {kind} named; known: all, {', '.join(known)}")
        for name in names:
            if name not in known:
                raise unknown_name(kind, name, ("all", *known))
    if seeds < 1:
        raise SettingError(f"seeds is {seeds}; it must be at least 1")
    if every_pair:
        pairs = [(network, fusion) for network in feature_networks for fusion in fusions]
    else:
        fusion = OWN_FUSION if OWN_FUSION in fusions else fusions[0]
        network = OWN_NETWORK if OWN_NETWORK in feature_networks else feature_networks[0]
        pairs = [(name, fusion) for name in feature_networks] + [(network, name) for name in fusions]
    return [Trial(*pair, seed) for seed in range(seeds) for pair in dict.fromkeys(pairs)]


def ablate(
    data: str | Path,
    out: str | Path,
    *,
    model: str | ModelSpec = "lite0",
    feature_networks: Sequence[str] = tuple(TOPOLOGIES),
    fusions: Sequence[str] = FUSIONS,
    seeds: int = 3,
    every_pair: bool = False,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train every trial under the same budget, and compare.

    Args:
        data: what `train` takes; its validation split gives the AP, measured once, after the last epoch.
        out: folder of the trials and of `ablation.json` and `ablation.md`. What is finished there is not trained
            again; what was stopped goes on.
        model: a name of the family, or a spec: backbone, width, depth and heads of every trial.
        feature_networks: see `plan_trials`.
        fusions: see `plan_trials`.
        seeds: see `plan_trials`.
        every_pair: see `plan_trials`.
        jobs: trials at a time, each a process with its share of the cores, or a GPU of its own.
        say: takes lines of progress.
        **settings: of `train`, the same for every trial.

    Returns:
        The rows of the table: one for each pair of network and fusion.

    Raises:
        SettingError, UnknownNameError: see `plan_trials`; or `out` holds trials under other settings.
        EfficientDetError: trials failed; names each and why. Those that ended well keep their results.
    """
    require("lightning.pytorch", "train")
    trials = plan_trials(feature_networks, fusions, seeds, every_pair)
    spec = find_spec(model) if isinstance(model, str) else model
    if jobs < 1:
        raise SettingError(f"jobs is {jobs}; it must be at least 1")
    folder = Path(out)
    # Files by their names: a folder may be called from elsewhere.
    names = {name: Path(value).name for name, value in settings.items() if name.endswith("weights") and value}
    budget = {"model": spec.name, "data": Path(data).name, **settings, **names}
    _keep_budget(folder / "budget.json", budget)
    settings = {"evaluate_every": settings.get("epochs", 50), **settings}
    todo = [trial for trial in trials if not _is_done(folder / trial.name)]
    say(f"{len(trials)} trials, {len(trials) - len(todo)} of them done already; {jobs} at a time")
    failures = _run_all(todo, spec, data, folder, jobs, settings, say)
    if failures:
        raise EfficientDetError(f"{len(failures)} of {len(trials)} trials failed:\n  " + "\n  ".join(failures))
    rows = compare(folder, trials)
    write_json(folder / "ablation.json", {"budget": budget, "rows": rows})
    write_text(folder / "ablation.md", as_markdown(rows, budget, seeds))
    return rows


def _keep_budget(path: Path, budget: dict[str, Any]) -> None:
    """All trials of a folder share one budget: refuse another."""
    budget = json.loads(json.dumps(budget, default=str))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*before, *budget} if before.get(name) != budget.get(name))
        if changed:
            raise SettingError(
                f"{path.parent}: its trials were begun with other settings: "
                + ", ".join(f"{name} was {before.get(name)!r}, now {budget.get(name)!r}" for name in changed)
            )
        return
    write_json(path, budget)


def _is_done(folder: Path) -> bool:
    return (folder / "report.json").is_file() and (folder / "metrics.json").is_file()


def _run_all(
    trials: list[Trial], model: str | ModelSpec, data: str | Path, folder: Path, jobs: int, settings: dict[str, Any],
    say: Callable[[str], None],
) -> list[str]:  # fmt: skip
    """Run the trials in processes; gives a line for each that failed."""
    context = get_context("spawn")
    places: Any = context.Queue()
    for job in range(jobs):
        places.put(job)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failures = []
    started, done = time.perf_counter(), 0
    with ProcessPoolExecutor(jobs, context, _take_place, (places, threads, torch.cuda.device_count())) as pool:
        futures = {pool.submit(_run, trial, model, data, folder, settings): trial for trial in trials}
        try:
            for future in as_completed(futures):
                name = futures[future].name
                done += 1
                left = (time.perf_counter() - started) / done * (len(trials) - done)
                try:
                    said = f"AP {future.result():.3f}"
                # Whatever felled this trial, the others go on, and it is reported.
                except Exception as error:
                    failures.append(f"{name}: {type(error).__name__}: {error}")
                    said = f"failed: {error}"
                say(f"{name}: {said}; about {left / 60:.0f} min left")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def _take_place(places: Any, threads: int, gpus: int) -> None:
    """Give a process its share of the cores, and a GPU of its own where there are some."""
    torch.set_num_threads(threads)
    try:
        job = places.get(timeout=5)
    except queue.Empty:  # a process that takes the place of one that died
        job = 0
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(job % gpus)


def _run(trial: Trial, model: str | ModelSpec, data: str | Path, folder: Path, settings: dict[str, Any]) -> float:
    from efficientdet.training.run import train

    own = folder / trial.name
    run = train(
        model, data, feature_network=trial.feature_network, fusion=trial.fusion, seed=trial.seed, out=own,
        resume=(own / CONFIG_FILE).is_file(), quiet=True, **settings,
    )  # fmt: skip
    if run.metrics is None:
        raise SettingError(f"{data} has no validation split, so there is no AP to compare")
    return run.metrics.ap


def compare(folder: Path, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row for each pair of network and fusion, from the finished trials in a folder.

    Returns:
        Rows with AP and AP50 of every seed, their mean and sample standard deviation (None for one seed), the mean
        difference of AP to the first BiFPN row seed by seed, learnable parameters, multiply-adds at the trained input
        size, and images/s of the network alone at batch 1, all networks timed in turns.
    """
    pairs = list(dict.fromkeys((trial.feature_network, trial.fusion) for trial in trials))
    speeds = _images_per_second([folder / _of(trials, pair)[0].name for pair in pairs])
    reference = (OWN_NETWORK, OWN_FUSION) if (OWN_NETWORK, OWN_FUSION) in pairs else pairs[0]
    baseline = [_metrics(folder, trial)["ap"] for trial in _of(trials, reference)]
    rows = []
    for pair, speed in zip(pairs, speeds, strict=True):
        own = _of(trials, pair)
        metrics = [_metrics(folder, trial) for trial in own]
        aps = [entry["ap"] for entry in metrics]
        info = read_info(folder / own[0].name / "last.safetensors")
        parameters, multiply_adds = count(info.spec, len(info.class_names))
        rows.append(
            {
                "feature_network": pair[0],
                "fusion": pair[1],
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


def _of(trials: Sequence[Trial], pair: tuple[str, str]) -> list[Trial]:
    return [trial for trial in trials if (trial.feature_network, trial.fusion) == pair]


def _metrics(folder: Path, trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / trial.name / "metrics.json").read_text(encoding="utf-8"))
    return found


@torch.inference_mode()
def _images_per_second(folders: Sequence[Path]) -> list[float]:
    """Of each network at batch 1; they take turns, so that a machine that slows down slows all of them."""
    models = [load_checkpoint(folder / "last.safetensors")[0] for folder in folders]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [model.to(device, memory_format=torch.channels_last) for model in models]  # type: ignore[call-overload]
    size = models[0].spec.image_size
    images = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    times: list[list[float]] = [[] for _ in models]
    for turn in range(SPEED_ROUNDS + 2):
        for model, own in zip(models, times, strict=True):
            start = time.perf_counter()
            model(images)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # the first ones warm up
                own.append(time.perf_counter() - start)
    return [1 / statistics.median(own) for own in times]


def as_markdown(rows: Sequence[dict[str, Any]], budget: dict[str, Any], seeds: int) -> str:
    """The table with the budget above it and a word on noise below."""
    settings = ", ".join(f"{name} {value}" for name, value in budget.items() if value is not None)
    lines = [
        f"Every row: {seeds} seed{'s' if seeds > 1 else ''} under one budget ({settings}).",
        "",
        "| feature network | fusion | AP, mean ± deviation | by seed | difference to BiFPN, fast | AP50 | params, M "
        "| GMAC | images/s |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        deviation = "" if row["ap_deviation"] is None else f" ± {row['ap_deviation']:.3f}"
        lines.append(
            f"| {row['feature_network']} | {row['fusion']} | {row['ap']:.3f}{deviation} "
            f"| {', '.join(f'{ap:.3f}' for ap in row['ap_by_seed'])} | {row['ap_difference']:+.3f} "
            f"| {row['ap50']:.3f} | {row['parameters'] / 1e6:.2f} | {row['multiply_adds'] / 1e9:.2f} "
            f"| {row['images_per_second']:.1f} |"
        )
    return "\n".join([*lines, "", _on_noise(rows), ""])


def _on_noise(rows: Sequence[dict[str, Any]]) -> str:
    deviations = [row["ap_deviation"] for row in rows if row["ap_deviation"] is not None]
    if not deviations:
        return "One seed each: nothing is known of the noise, and no difference here should be believed."
    pooled = (statistics.mean(deviation**2 for deviation in deviations)) ** 0.5
    seeds = len(rows[0]["ap_by_seed"])
    needed = 2 * pooled * (2 / seeds) ** 0.5
    above = [f"{row['feature_network']} with {row['fusion']}" for row in rows if abs(row["ap_difference"]) > needed]
    told = f"Only these are further from BiFPN than that: {', '.join(above)}." if above else "No row is that far away."
    return (
        f"Two runs that differ in the seed alone are {pooled:.3f} AP apart (pooled standard deviation), so with "
        f"{seeds} seeds two rows must differ by more than {needed:.3f} to mean anything (two standard errors). {told}"
    )
