"""Eight pictures learnt by heart: the whole way from annotations to AP works, or this does not come out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from efficientdet.evaluation.evaluate import evaluate
from efficientdet.training.run import train

PICTURES = 8


def _smallest_side(annotations: list[dict[str, Any]], longest: int) -> float:
    """Side of the smallest box, as a share of the picture's longest side; -1 without boxes or with crowds."""
    if not annotations or any(annotation["iscrowd"] for annotation in annotations):
        return -1
    return min(min(annotation["bbox"][2:]) for annotation in annotations) / longest


def _eight_pictures(source: Path, folder: Path) -> Path:
    """A data set of the eight pictures whose smallest boxes are the largest: few pixels show enough of them."""
    content = json.loads((source / "instances.json").read_text())
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    ranked = sorted(
        content["images"],
        key=lambda image: _smallest_side(by_image[image["id"]], max(image["width"], image["height"])),
    )
    images = ranked[-PICTURES:]
    (folder / "images").mkdir(parents=True)
    for image in images:
        shutil.copy(source / "images" / image["file_name"], folder / "images" / image["file_name"])
    chosen = {**content, "images": images, "annotations": [a for image in images for a in by_image[image["id"]]]}
    (folder / "train.json").write_text(json.dumps(chosen))
    return folder / "train.json"


@pytest.mark.slow
def test_eight_pictures_are_learnt_by_heart(shared_data: Path, tmp_path: Path) -> None:
    data = _eight_pictures(shared_data / "coco_tiny", tmp_path / "eight")
    run = train(
        "lite0", data, backbone_weights=shared_data / "weights" / "efficientnet_lite0_imagenet_folded.npz",
        out=tmp_path / "run", quiet=True, epochs=80, batch_size=4, image_size=192, optimizer="adamw",
        learning_rate=3e-3, warmup_epochs=4, scale_jitter=(1.0, 1.0), flip=0.0, ema_decay=0.0, precision="fp32",
        device="cpu",
    )  # fmt: skip
    metrics = evaluate(run.last, data)
    assert metrics.ap50 > 0.9
    assert metrics.ap > 0.5
