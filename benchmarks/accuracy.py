"""What both sides compute: losses, detections, AP, and the shipped ONNX example beside `Detector.predict`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case
from checks import (
    AP_TOLERANCE,
    REDUCED_AP_TOLERANCE,
    Check,
    coco_results,
    ground_truth_of,
    same_ap,
    same_detections,
    same_example,
    same_input,
    same_loss,
)
from files import Files, Network, people
from processes import SideError
from results import Result

from efficientdet.evaluation.coco_ap import Metrics, coco_metrics
from efficientdet.exporting.export import export
from efficientdet.images.letterbox import letterbox_scale
from efficientdet.images.read import image_size
from efficientdet.inference.detector import load
from efficientdet.inference.settings import EVALUATION_SCORE_THRESHOLD

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnxruntime_detect.py"
# Images of the dataset on which the example is compared, besides the sample.
EXAMPLE_IMAGES = 5
# On fewer images than this the AP of bf16 and int8 jumps.
ENOUGH_IMAGES = 100


def compare(result: Result, network: Network, image: Path) -> list[Check]:
    """Compare what the sides of a timed case computed before the rounds.

    Args:
        result: the sides and what they reported.
        network: what both were given.
        image: the image whose input they wrote.
    """
    pairs = [(our, peer) for our, peer in result.pairs() if our.group == peer.group and our.side.is_same]
    if result.task == "train":
        return [same_loss(our.group, our.facts["loss"], peer.facts["loss"]) for our, peer in pairs]
    found = []
    for our, peer in pairs:
        ours, threshold = our.facts["detections"], our.facts["score_threshold"]
        found.append(same_detections(our.label, ours, peer.facts["detections"], threshold))
    if pairs:
        our, peer = pairs[0]
        _, content = letterbox_scale(image_size(image), (network.size, network.size))
        ours, theirs = (np.load(side.facts["input_file"]) for side in (our, peer))
        found.append(same_input(ours, theirs, content, network.std))
    return found


def evaluate(result: Result, case: Case) -> tuple[list[list[str]], list[Check]]:
    """AP of every side on the same images: a table, and whether it is the same.

    Of people it is that of the ground truth. Of crops, which nobody has annotated, the ground truth is made of effdet's
    own best boxes, moved a little: see `checks.ground_truth_of`.
    """
    peer = next(side for side in result.sides if side.is_peer)
    if case.images == "people":
        records = people(case.count)
        truth, categories = records.to_coco(), list[Any](records.category_ids)
    else:
        truth = ground_truth_of(peer.facts["detections"])
        known = {category["id"] for category in truth["categories"]}
        categories = [label if label in known else None for label in range(result.num_classes)]
    ids = [image["id"] for image in truth["images"]]

    def metrics(detections: Any) -> Metrics:
        return coco_metrics(truth, coco_results(detections, ids, categories, EVALUATION_SCORE_THRESHOLD))

    found = {side.label: metrics(side.facts["detections"]) for side in result.sides}
    found[f"{peer.label}, its own padding"] = metrics(peer.facts["detections_as_shipped"])
    theirs = found[peer.label].ap
    rows = [["side", "AP", "AP50", "AP75", "AP less effdet's"]]
    for label, one in found.items():
        rows.append([label, *(f"{value:.4f}" for value in (one.ap, one.ap50, one.ap75)), f"{one.ap - theirs:+.4f}"])
    checks = []
    for side in (side for side in result.sides if not side.is_peer and not side.side.settings.get("rectangular")):
        if side.side.is_same:
            checks.append(same_ap(side.label, found[side.label].ap, theirs, AP_TOLERANCE))
        elif case.images == "people" and len(ids) >= ENOUGH_IMAGES:
            checks.append(same_ap(side.label, found[side.label].ap, theirs, REDUCED_AP_TOLERANCE))
    return rows, checks


def compare_example(files: Files) -> Check:
    """Run examples/onnxruntime_detect.py on an exported `people`, and compare it with `Detector.predict`.

    Raises:
        SideError: the example fails.
    """
    path = files.folder / "people.onnx"
    detector = load("people", device="cpu", backend="eager")
    if not path.exists():
        export(detector, path, end_to_end=True)
    labels = {name: label for label, name in enumerate(detector.class_names)}
    examples, ours = [], []
    for image in [str(files.image), *files.images("people", EXAMPLE_IMAGES)]:
        command = [sys.executable, str(EXAMPLE), str(path), image]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SideError(f"{EXAMPLE.name}: ended with code {done.returncode}:\n{done.stderr.strip()}")
        rows = map(json.loads, done.stdout.splitlines())
        examples.append([[*row["box_xyxy"], row["score"], labels[row["class"]]] for row in rows])
        own = detector.predict(image)
        parts = (own.boxes_xyxy.tolist(), own.scores.tolist(), own.labels.tolist())
        ours.append([[*box, score, label] for box, score, label in zip(*parts, strict=True)])
    return same_example(examples, ours)
