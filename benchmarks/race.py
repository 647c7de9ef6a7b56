"""Race: `efficientdet train` against a script around effdet 0.4.1, on one dataset, in about the same time.

Both start from the same ImageNet backbone with new heads, at the same image size, and are measured by this package's
evaluator on the same split. This package has as many epochs as should take effdet's time; the seconds of both are
printed, evaluations and the start of the run included on this side.
"""

from __future__ import annotations

import argparse
import json
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
from efficientdet.evaluation.coco_ap import Metrics, coco_metrics
from efficientdet.images.letterbox import LITE
from efficientdet.network.efficientdet import build_model
from efficientdet.training.initial_weights import start_backbone_from
from efficientdet.weights.foreign import to_foreign

HERE = Path(__file__).resolve().parent
PREFIX = "backbone."


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


def race_effdet(arguments: argparse.Namespace, train: Records, measured: Records) -> tuple[float, Metrics]:
    """Seconds of the training, and what it reaches."""
    model = build_model(arguments.network, len(train.class_names))
    start_backbone_from(model, arguments.backbone, train, arguments.size, LITE)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "backbone.pth"
        states = to_foreign(model, "effdet").items()
        torch.save({name.removeprefix(PREFIX): x for name, x in states if name.startswith(PREFIX)}, weights)
        job = {
            "network": arguments.network, "num_classes": len(train.class_names), "size": arguments.size,
            "epochs": arguments.epochs, "seed": arguments.seed, "backbone": str(weights),
            "train": described(train), "measured": described(measured),
        }  # fmt: skip
        command = [peer_python(), str(HERE / "race_peer.py")]
        done = subprocess.run(command, input=json.dumps(job) + "\n", stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    results = [row | {"category_id": measured.category_ids[row["category_id"]]} for row in answer["results"]]
    return answer["seconds"], coco_metrics(measured.to_coco(), results)


def main() -> None:
    """Run both, and print a row of Markdown for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the dataset")
    parser.add_argument("--backbone", type=Path, required=True, help=".npz of ImageNet weights")
    parser.add_argument("--network", default="lite0")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=20, help="of effdet")
    parser.add_argument("--our-epochs", type=int, default=40, help="of this package, whose steps take half the time")
    parser.add_argument("--split", default="test", help="to measure on; the best checkpoint is chosen on val")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, measured = (read_split(arguments.data, split) for split in ("train", arguments.split))
    seconds, theirs = race_effdet(arguments, train, measured)
    say(f"effdet: {seconds:.0f} s, AP {theirs.ap:.3f}; now this package")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = ed.train(
            arguments.network, arguments.data, out=Path(folder) / "run", epochs=arguments.our_epochs,
            backbone_weights=arguments.backbone, image_size=arguments.size, seed=arguments.seed,
        )  # fmt: skip
        own_seconds = time.perf_counter() - started
        ours = ed.evaluate(run.best, arguments.data, split=arguments.split)
    print("| dataset | seed | | seconds | AP | AP50 |\n|---|---|---|---|---|---|")
    for name, took, metrics in (("effdet 0.4.1", seconds, theirs), ("efficientdet", own_seconds, ours)):
        numbers = f"{took:.0f} | {metrics.ap:.3f} | {metrics.ap50:.3f}"
        print(f"| {arguments.data.name} | {arguments.seed} | {name} | {numbers} |")


if __name__ == "__main__":
    main()
