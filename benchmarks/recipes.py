"""What each part of the recipe `modern` gives: training runs on some datasets, a row of settings each, as Markdown.

Every run starts from the same weights and has the same epochs; AP is that of the last weights on
the split to measure on. Results go into a file as they come, and a run that is in it is not done again.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from run import say

import efficientdet as ed
from efficientdet.data.dataset import Batch, collate
from efficientdet.data.read_split import read_split
from efficientdet.settings import changed
from efficientdet.training.config import TrainConfig
from efficientdet.training.device import choose_precision
from efficientdet.training.memory import kept_memory
from efficientdet.training.module import DetectionModule
from efficientdet.training.prepare import Job, prepare, read_splits
from efficientdet.training.recipes import recipe_settings
from efficientdet.training.schedule import build_optimizer

# What differs from the defaults.
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {},
    "modern, Huber": {"box_loss": "huber"},
    "modern, task-aligned": {"assignment": "task-aligned"},
    "modern, batch 4": {"batch_size": 4},
    "modern, frozen batch norms": {"batch_norm": "frozen"},
    "modern, SGD": {"optimizer": "sgd"},
    "paper": {"recipe": "paper"},
    "paper, frozen batch norms": {"recipe": "paper", "batch_norm": "frozen"},
}
MEASURES = ("ap", "ap50", "ap75")


def measure(data: Path, variant: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate once."""
    with tempfile.TemporaryDirectory() as folder:
        run = ed.train(
            arguments.network, data, out=Path(folder) / "run", backbone_weights=arguments.backbone, seed=seed,
            weights=arguments.weights, frozen_stages=arguments.frozen_stages, image_size=arguments.size,
            epochs=arguments.epochs, evaluate_every=arguments.epochs, quiet=True, **VARIANTS[variant],
        )  # fmt: skip
        metrics = ed.evaluate(run.last, read_split(data, arguments.split))
    found = {name: getattr(metrics, name) for name in MEASURES}
    return {"data": data.name, "variant": variant, "seed": seed, "boxes": metrics.boxes, **found}


def step_seconds(data: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a training step of both recipes, which take turns on the same batch."""
    steps = {}
    for recipe in ("paper", "modern"):
        config = changed(TrainConfig(image_size=arguments.size), recipe_settings(recipe))
        quiet = Console(quiet=True)
        job = Job(arguments.network, data, config, Path("unused"))
        module, _ = prepare(job, read_splits(data, config, quiet), quiet)
        optimizer = build_optimizer(module.model, config)
        batch = collate([module.train_set[index, 0] for index in range(config.images_at_once)])
        steps[recipe] = functools.partial(take_step, module, optimizer, batch)
    taken: dict[str, list[float]] = {recipe: [] for recipe in steps}
    with kept_memory():
        for recipe in [*steps] * arguments.steps:
            started = time.perf_counter()
            steps[recipe]()
            taken[recipe].append(time.perf_counter() - started)
    return {recipe: statistics.median(seconds) for recipe, seconds in taken.items()}


def take_step(module: DetectionModule, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """Forward, matching and losses, backward, optimizer."""
    with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("auto", "cpu") == "bf16"):
        loss = module.losses(batch).total
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.model.parameters(), module.config.gradient_clip)
    optimizer.step()


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a row for each dataset and variant, means over the seeds, and AP by seed."""
    lines = ["| dataset | settings | AP | by seed | AP50 | AP75 |", "|---|---|---|---|---|---|"]
    for data, variant in dict.fromkeys((row["data"], row["variant"]) for row in rows):
        same = [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
        means = [f"{statistics.mean(row[name] for row in same):.3f}" for name in MEASURES]
        seeds = ", ".join(f"{row['ap']:.3f}" for row in same)
        lines.append(f"| {data} | {variant} | {means[0]} | {seeds} | {means[1]} | {means[2]} |")
    return lines


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+", help="folders of datasets")
    parser.add_argument("--backbone", type=Path, help=".npz of ImageNet weights")
    parser.add_argument("--weights", help="a whole detector to start from instead, such as people")
    parser.add_argument("--frozen-stages", type=int, default=0)
    parser.add_argument("--network", default="lite0")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--split", default="test", help="to measure on")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="these settings alone; can be repeated")
    parser.add_argument("--steps", type=int, help="only time this many training steps of `paper` and `modern`")
    parser.add_argument("--results", type=Path, default=Path("recipes.jsonl"))
    arguments = parser.parse_args()
    if arguments.steps:
        seconds = step_seconds(arguments.data[0], arguments)
        print(f"a step takes {seconds}; modern / paper: {seconds['modern'] / seconds['paper']:.3f}")
        return
    path: Path = arguments.results
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["data"], row["variant"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for data in arguments.data:
            for variant in arguments.only or VARIANTS:
                if (data.name, variant, seed) not in done:
                    rows.append(measure(data, variant, seed, arguments))
                    say(json.dumps(rows[-1]))
                    with path.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
