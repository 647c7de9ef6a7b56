"""The script that someone writes around effdet to train on a dataset of their own. Runs in effdet's environment.

Reads one JSON line: the images, the initial weights of the backbone, size, minutes and seed. Prints one: seconds and
COCO results.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

import numpy as np
import torch
from effdet import DetBenchPredict, DetBenchTrain, get_efficientdet_config
from effdet.data.transforms import RandomFlip, RandomResizePad, ResizePad
from effdet.factory import create_model_from_config
from PIL import Image
from torch import Tensor

BATCH, MEAN, STD = 8, 127, 128.0
# Parts of the time in which the learning rate goes through its cycle.
TICKS = 10_000
SCALES, DROP_PATH, WEIGHT_DECAY, LARGEST_NORM = (0.6, 1.5), 0.2, 1e-4, 10.0
BACKBONE_RATE, HEAD_RATE = 5e-4, 2e-3


def build(job: dict[str, Any]) -> Any:
    """The network with the given backbone, and new heads."""
    config = get_efficientdet_config(f"tf_efficientdet_{job['network']}")
    config.backbone_args.drop_path_rate = DROP_PATH
    size = (job["size"], job["size"])
    network = create_model_from_config(
        config, num_classes=job["num_classes"], pretrained=False, pretrained_backbone=False, image_size=size
    )
    network.backbone.load_state_dict(torch.load(job["backbone"], weights_only=True))
    return network


class Images:
    """Images in memory, and their boxes."""

    def __init__(self, size: int) -> None:
        color = (MEAN, MEAN, MEAN)
        self.flip, self.jitter = RandomFlip(), RandomResizePad(size, SCALES, fill_color=color)
        self.plain = ResizePad(size, fill_color=color)
        self.read: dict[str, Image.Image] = {}

    def open(self, path: str) -> Image.Image:
        """A copy of an image."""
        if path not in self.read:
            self.read[path] = Image.open(path).convert("RGB")
        return self.read[path].copy()

    def sample(self, image: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, boxes in effdet's order, and classes from 1."""
        boxes = np.array(image["boxes_xyxy"], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        target = {"bbox": boxes, "cls": np.array(image["labels"], np.int64) + 1}
        pixels, target = self.jitter(*self.flip(self.open(image["path"]), target))
        return normalized(pixels), torch.from_numpy(target["bbox"]), torch.from_numpy(target["cls"])


def normalized(image: Image.Image) -> Tensor:
    """(3, H, W) float32."""
    return torch.from_numpy((np.asarray(image, np.float32).transpose(2, 0, 1) - MEAN) / STD)


def train(network: Any, job: dict[str, Any], images: Images) -> float:
    """Train for the job's minutes, with one cycle of the learning rate by the clock; returns the seconds."""
    bench = DetBenchTrain(network, create_labeler=True).train()
    heads = [p for name, p in network.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": network.backbone.parameters(), "lr": BACKBONE_RATE}, {"params": heads, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [BACKBONE_RATE, HEAD_RATE], total_steps=TICKS + 1)
    train_set, order, steps, loss = job["train"], list[Any](), 0, torch.zeros(())
    clock, cores = (time.process_time, os.cpu_count() or 1) if job["by_processor"] else (time.perf_counter, 1)
    started = clock()
    while (seconds := (clock() - started) / cores) < 60 * job["minutes"]:
        if len(order) < BATCH:
            order = random.sample(train_set, len(train_set))
            print(f"effdet: {steps} steps in {seconds:.0f} s, loss {loss.item():.3g}", file=sys.stderr, flush=True)
        samples, order = [images.sample(one) for one in order[:BATCH]], order[BATCH:]
        pixels, boxes, labels = zip(*samples, strict=True)
        loss = bench(torch.stack(pixels), {"bbox": list(boxes), "cls": list(labels)})["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_NORM)
        optimizer.step()
        schedule.last_epoch = int(TICKS * seconds / (60 * job["minutes"])) - 1
        schedule.step()
        steps += 1
    return seconds


@torch.no_grad()
def predict(network: Any, job: dict[str, Any], images: Images) -> list[dict[str, Any]]:
    """COCO results on the images to measure on, with labels for category ids."""
    bench, results = DetBenchPredict(network).eval(), []
    for image in job["measured"]:
        whole = images.open(image["path"])
        pixels, info = images.plain(whole, {})
        size = {"img_scale": torch.tensor([info["img_scale"]]), "img_size": torch.tensor([whole.size]).float()}
        for left, top, right, bottom, score, number in bench(normalized(pixels)[None], size)[0].tolist():
            box = [left, top, right - left, bottom - top]
            if score > 0:
                row = {"image_id": image["id"], "category_id": int(number) - 1, "bbox": box, "score": score}
                results.append(row)
    return results


def main() -> None:
    """Answer the job on standard input."""
    job = json.loads(sys.stdin.readline())
    random.seed(job["seed"])
    torch.manual_seed(job["seed"])
    network, images = build(job), Images(job["size"])
    seconds = train(network, job, images)
    print(json.dumps({"seconds": seconds, "results": predict(network, job, images)}))


if __name__ == "__main__":
    main()
