"""Times the whole evaluation of COCO-size detections beside faster-coco-eval's own part of it.

    python benchmarks/evaluation.py

5,000 images, 36,000 boxes of 80 classes, 500,000 detections, made from a fixed seed. Both sides run in turns, in one
process; the ratio of each round counts.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import numpy as np

from efficientdet.evaluation.coco_ap import coco_metrics
from efficientdet.evaluation.curves import calibration, class_ap, iou_of_hits, precision_recall
from efficientdet.evaluation.matching import match, read_table
from efficientdet.evaluation.mistakes import confusion_matrix, cost_of_mistakes, find_mistakes

IMAGES, OBJECTS, DETECTIONS, CLASSES = 5_000, 36_000, 500_000, 80
ROUNDS = 3


def made_up() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results: two in five detections lie near an object, the others anywhere."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, IMAGES, OBJECTS), random.integers(0, CLASSES, OBJECTS)
    sides = np.exp(random.uniform(np.log(8), np.log(300), (OBJECTS, 2)))
    boxes = np.concatenate([random.uniform(0, 1, (OBJECTS, 2)) * (640 - sides), sides], 1)
    near = random.integers(0, OBJECTS, DETECTIONS)
    is_near = random.random(DETECTIONS) < 0.4
    moved = boxes[near] + random.normal(0, 0.15, (DETECTIONS, 4)) * np.tile(sides[near], 2)
    anywhere = np.concatenate([random.uniform(0, 500, (DETECTIONS, 2)), random.uniform(8, 140, (DETECTIONS, 2))], 1)
    found = np.where(is_near[:, None], moved, anywhere)
    found[:, 2:] = found[:, 2:].clip(1)
    found_images = np.where(is_near, images[near], random.integers(0, IMAGES, DETECTIONS))
    found_labels = np.where(is_near, labels[near], random.integers(0, CLASSES, DETECTIONS))
    scores = np.where(is_near, random.beta(2, 2, DETECTIONS), random.beta(1, 6, DETECTIONS))
    truth = {
        "images": [{"id": i} for i in range(IMAGES)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(CLASSES)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (i, k, box) in enumerate(zip(images.tolist(), labels.tolist(), boxes.tolist(), strict=True), 1)
        ],
    }
    columns = (found_images.tolist(), found_labels.tolist(), found.tolist(), scores.tolist())
    results = [
        {"image_id": i, "category_id": k, "bbox": box, "score": score}
        for i, k, box, score in zip(*columns, strict=True)
    ]
    return truth, results


def library_alone(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """AP by faster-coco-eval; the dictionaries are its own copies."""
    from faster_coco_eval import COCO, COCOeval_faster

    coco = COCO(truth)
    evaluation = COCOeval_faster(coco, coco.loadRes(results), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def whole_evaluation(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """All that a report shows, but for the intervals and the images."""
    metrics = coco_metrics(truth, results)
    matches = match(read_table(truth, results))
    for label in range(CLASSES):
        precision_recall(matches, label)
    ap = float(np.nanmean(class_ap(matches)))
    confusion_matrix(matches, 0.3)
    cost_of_mistakes(matches, find_mistakes(matches))
    calibration(matches)
    iou_of_hits(matches)
    if abs(ap - metrics.ap) > 1e-9:
        raise SystemExit(f"AP of the matches is {ap}, of the library {metrics.ap}")
    return metrics.ap


def main() -> None:
    """Print a line a round and the median ratio."""
    truth, results = made_up()
    ratios = []
    for number in range(ROUNDS):
        given = copy.deepcopy((truth, results))
        start = time.perf_counter()
        theirs = library_alone(*given)
        middle = time.perf_counter()
        ours = whole_evaluation(truth, results)
        end = time.perf_counter()
        if abs(ours - theirs) > 1e-9:
            raise SystemExit(f"AP differs: {ours} here, {theirs} by the library alone")
        ratios.append((end - middle) / (middle - start))
        print(f"round {number + 1}/{ROUNDS}: library {middle - start:.1f} s, whole evaluation {end - middle:.1f} s")
    print(f"AP {ours:.4f} on both sides; whole evaluation / library: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
