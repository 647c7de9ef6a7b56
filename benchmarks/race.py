"""Race at equal time: the recipes `modern` and `paper` of this package, and a script around effdet 0.4.1, on datasets.

All start from the same backbone, and on this side from a whole detector if one is given. They are measured by this
package's evaluator on the same split. Starting, measuring the machine, evaluating and saving count on this side; on
effdet's only the training does. effdet's images have the size that `modern` chose. On a machine that others use as
well, `--processor-time` counts the time that a side's process has had of all cores, instead of the clock's. Results go
into a file as they come, and a run that is in it is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from run import peer_python, say

import efficientdet as ed
from efficientdet.data.read_split import read_split
from efficientdet.data.records import Records
from efficientdet.errors import MissingSplitError
from efficientdet.evaluation.coco_ap import Metrics, coco_metrics
from efficientdet.images.letterbox import LITE
from efficientdet.training import plan
from efficientdet.training.initial_weights import start_backbone_from
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import to_foreign

HERE = Path(__file__).resolve().parent
PREFIX = "backbone."
EFFDET = "effdet 0.4.1"
# `modern` first: it chooses the image size for effdet.
SIDES = ("modern", "paper", EFFDET)
Row = dict[str, Any]


def described(records: Records) -> list[dict[str, Any]]:
    """Images and boxes as the other side reads them."""
    return [
        {
            "id": image.image_id, "path": str(image.path),
            "boxes_xyxy": image.boxes_xyxy[~image.is_ignored].tolist(),
            "labels": image.labels[~image.is_ignored].tolist(),
        }
        for image in records.images
    ]  # fmt: skip


def processor_time() -> float:
    """Seconds of all cores that this process has had; a process that has them to itself has a second in each."""
    return time.process_time() / (os.cpu_count() or 1)


def measured_split(data: Path) -> str:
    """The split to measure on: test, or val where there is none."""
    try:
        read_split(data, "test")
    except MissingSplitError:
        return "val"
    return "test"


def race_effdet(data: Path, size: int, seed: int, arguments: argparse.Namespace) -> tuple[float, Metrics]:
    """Seconds of the training, and what it reaches."""
    train, measured = read_split(data, "train"), read_split(data, measured_split(data))
    model = create_model(arguments.network, len(train.class_names))
    start_backbone_from(model, arguments.weights or arguments.backbone, train, size, LITE)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "backbone.pth"
        states = to_foreign(model, "effdet").items()
        torch.save({name.removeprefix(PREFIX): x for name, x in states if name.startswith(PREFIX)}, weights)
        job = {
            "network": arguments.network, "num_classes": len(train.class_names), "size": size,
            "minutes": arguments.minutes, "by_processor": arguments.processor_time, "seed": seed,
            "backbone": str(weights),
            "train": described(train), "measured": described(measured),
        }  # fmt: skip
        command = [peer_python(), str(HERE / "race_peer.py")]
        done = subprocess.run(command, input=json.dumps(job) + "\n", stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    results = [row | {"category_id": measured.category_ids[row["category_id"]]} for row in answer["results"]]
    return answer["seconds"], coco_metrics(measured.to_coco(), results)


def race_recipe(data: Path, recipe: str, seed: int, arguments: argparse.Namespace) -> tuple[int, float, Metrics]:
    """The image size chosen, seconds of the whole run, and what its best checkpoint reaches."""
    with tempfile.TemporaryDirectory() as folder:
        started = plan.clock()
        run = ed.train(
            arguments.network, data, out=Path(folder) / "run", recipe=recipe, minutes=arguments.minutes, seed=seed,
            weights=arguments.weights, backbone_weights=arguments.backbone, image_size=arguments.size,
        )  # fmt: skip
        seconds = plan.clock() - started
        split = measured_split(data)
        weights = run.best if split == "test" else run.last  # the best was chosen on val
        return ed.load(run.best).image_size[0], seconds, ed.evaluate(weights, data, split=split)


def measure(data: Path, side: str, seed: int, rows: list[Row], arguments: argparse.Namespace) -> Row:
    """Train and measure one side."""
    if side == EFFDET:
        place = data.name, SIDES[0], seed
        size = next(row["size"] for row in rows if (row["data"], row["side"], row["seed"]) == place)
        seconds, metrics = race_effdet(data, size, seed, arguments)
    else:
        size, seconds, metrics = race_recipe(data, side, seed, arguments)
    numbers = {
        "size": size,
        "seconds": seconds,
        "minutes": arguments.minutes,
        "ap": metrics.ap,
        "ap50": metrics.ap50,
        "boxes": metrics.boxes,
    }
    return {"data": data.name, "side": side, "seed": seed, **numbers}


def table(rows: list[Row]) -> list[str]:
    """Markdown: a row for each dataset and side, means over the seeds, and AP by seed."""
    lines = ["| dataset | side | image size | seconds | AP | by seed | AP50 |", "|---|---|---|---|---|---|---|"]
    for data, side in sorted(dict.fromkeys((row["data"], row["side"]) for row in rows)):
        same = [row for row in rows if (row["data"], row["side"]) == (data, side)]
        sizes = ", ".join(dict.fromkeys(str(row["size"]) for row in same))
        seconds, ap, ap50 = (statistics.mean(row[name] for row in same) for name in ("seconds", "ap", "ap50"))
        seeds = ", ".join(f"{row['ap']:.3f}" for row in same)
        lines.append(f"| {data} | {side} | {sizes} | {seconds:.0f} | {ap:.3f} | {seeds} | {ap50:.3f} |")
    return lines


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+", help="folders of datasets")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--weights", help="detector to start from, such as people; effdet starts from its backbone")
    start.add_argument("--backbone", type=Path, help="start from a backbone alone: .npz of ImageNet weights")
    parser.add_argument("--network", default="lite0")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument(
        "--size", type=int, help="image size of all sides; by default what each recipe's budget chooses"
    )
    parser.add_argument("--seed", type=int, action="append", help="can be repeated; by default 0")
    parser.add_argument("--only", action="append", choices=SIDES, help="these sides alone; can be repeated")
    parser.add_argument("--results", type=Path, default=Path("race.jsonl"))
    parser.add_argument("--processor-time", action="store_true", help="of the processor, not the clock")
    arguments = parser.parse_args()
    if arguments.processor_time:
        plan.clock = processor_time
    path: Path = arguments.results
    rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["data"], row["side"], row["seed"]) for row in rows}
    for seed in arguments.seed or [0]:
        for data, side in itertools.product(arguments.data, arguments.only or SIDES):
            if (data.name, side, seed) not in done:
                rows.append(measure(data, side, seed, rows, arguments))
                say(json.dumps(rows[-1]))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
