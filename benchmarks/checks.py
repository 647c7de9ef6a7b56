"""Whether two sides compute the same: what must hold before their times are compared.

Pure functions of what the sides reported. A section of the report whose checks do not all hold is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# float32 along two orders of summation.
PIXEL_TOLERANCE = 0.1
SCORE_TOLERANCE = 1e-3
# A score at the threshold, or at the cut to 100, may fall on either side.
LEAST_SHARE = 0.98
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
AP_TOLERANCE = 0.001
# bf16 and int8 round: one point, as `quantize` demands.
REDUCED_AP_TOLERANCE = 0.01
INPUT_TOLERANCE = 1e-3
# The shipped ONNX example: the same arithmetic, from the same pixels.
EXAMPLE_PIXELS = 0.01
EXAMPLE_SCORES = 1e-4

# left, top, right, bottom, score, label
Row = Sequence[float]


class Check(NamedTuple):
    """A comparison in words, and whether the two sides agree in it."""

    text: str
    agrees: bool


class Matched(NamedTuple):
    """How many detections are the same, and how far apart the farthest of these are, in pixels and in score."""

    number: int
    pixels: float
    scores: float


def match(ours: Sequence[Row], theirs: Sequence[Row], pixels: float, scores: float) -> Matched:
    """Match each of their detections with the nearest of ours of its class; each of ours serves once.

    Args:
        ours: detections of one image.
        theirs: the other side's.
        pixels: how far apart two coordinates may be.
        scores: how far apart two scores may be.
    """
    left = list(ours)
    found = Matched(0, 0.0, 0.0)
    for row in theirs:
        apart = [
            (max(abs(a - b) for a, b in zip(row[:4], own[:4], strict=True)), abs(row[4] - own[4]), index)
            for index, own in enumerate(left)
            if own[5] == row[5]
        ]
        near = min((one for one in apart if one[0] <= pixels and one[1] <= scores), default=None)
        if near is not None:
            del left[near[2]]
            found = Matched(found.number + 1, max(found.pixels, near[0]), max(found.scores, near[1]))
    return found


def same_detections(
    label: str, ours: Sequence[Sequence[Row]], theirs: Sequence[Sequence[Row]], threshold: float
) -> Check:
    """Compare the detections of some images.

    Args:
        label: what the report calls our side.
        ours: the rows of each image.
        theirs: effdet's, which has no score threshold.
        threshold: the score below which both are dropped.
    """
    kept = [[row for row in rows if row[4] >= threshold] for rows in theirs]
    found = _match_all(ours, kept, PIXEL_TOLERANCE, SCORE_TOLERANCE)
    own, total = sum(map(len, ours)), sum(map(len, kept))
    text = (
        f"{label}: {found.number} of effdet's {total} detections are among our {own}, to {found.pixels:.2g} pixels and "
        f"{found.scores:.2g} in score (must be {LEAST_SHARE:.0%}, to {PIXEL_TOLERANCE} pixels and {SCORE_TOLERANCE})"
    )
    return _check(text, found.number >= LEAST_SHARE * max(total, own) > 0)


def same_input(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], content: tuple[int, int], std: Sequence[float]
) -> Check:
    """Compare the network's inputs: inside the image they must be equal, of the padding the difference is given.

    Args:
        ours: (3, height, width), normalized.
        theirs: effdet's.
        content: (height, width) of the image within the input.
        std: of R, G, B; differences are given in units of 0..255.
    """
    height, width = content
    apart = np.abs(ours - theirs) * np.asarray(std)[:, None, None]
    inside = float(apart[:, :height, :width].max())
    apart[:, :height, :width] = 0
    text = (
        f"the network's input, in units of 0..255: {inside:.2g} apart inside the image (must be {INPUT_TOLERANCE}), "
        f"{float(apart.max()):.2g} in the padding, which is the mean color here and the nearest whole color in effdet; "
        "detections are compared with this package's padding on both sides"
    )
    return _check(text, inside <= INPUT_TOLERANCE)


def same_loss(group: str, ours: float, theirs: float) -> Check:
    """Compare the losses of the first training step."""
    allowed = LOSS_TOLERANCE[group]
    text = f"{group}: loss of the first step {ours:.6g}, effdet {theirs:.6g} (must be the same to {allowed:g} of it)"
    return _check(text, abs(ours - theirs) <= allowed * abs(theirs))


def same_ap(label: str, ours: float, theirs: float, tolerance: float = AP_TOLERANCE) -> Check:
    """Compare AP, 0..1."""
    text = f"{label}: AP {ours:.4f}, effdet {theirs:.4f} (must be the same to {tolerance:g})"
    return _check(text, abs(ours - theirs) <= tolerance)


def same_example(example: Sequence[Sequence[Row]], ours: Sequence[Sequence[Row]]) -> Check:
    """Compare the shipped ONNX example with `Detector.predict`: the rows of some images."""
    found = _match_all(ours, example, EXAMPLE_PIXELS, EXAMPLE_SCORES)
    own, total = sum(map(len, ours)), sum(map(len, example))
    text = (
        f"examples/onnxruntime_detect.py on {len(example)} images: {found.number} of its {total} detections are among "
        f"the {own} of `Detector.predict`, to {found.pixels:.2g} pixels and {found.scores:.2g} in score (must be all, "
        f"to {EXAMPLE_PIXELS} pixels and {EXAMPLE_SCORES})"
    )
    return _check(text, found.number == total == own > 0)


def _match_all(ours: Sequence[Sequence[Row]], theirs: Sequence[Sequence[Row]], pixels: float, scores: float) -> Matched:
    found = [match(own, other, pixels, scores) for own, other in zip(ours, theirs, strict=True)]
    return Matched(sum(one.number for one in found), max(one.pixels for one in found), max(one.scores for one in found))


def ground_truth_of(detections: Sequence[Sequence[Row]], best: int = 20) -> dict[str, Any]:
    """A COCO ground truth for images that nobody has annotated: a side's best boxes, moved.

    Every edge is moved by up to a tenth of the box's size, by seeded random numbers, so that AP is neither 0 nor 1 and
    every pixel counts.

    Args:
        detections: the rows of each image, best first.
        best: boxes of an image that are taken.
    """
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for image_id, rows in enumerate(detections):
        for left, top, right, bottom, _, label in rows[:best]:
            width, height = right - left, bottom - top
            moved = np.array([left, top, right, bottom]) + random.uniform(-0.1, 0.1, 4) * [width, height, width, height]
            box = [*moved[:2], *(moved[2:] - moved[:2])]
            annotations.append({"image_id": image_id, "category_id": int(label), "bbox": [float(x) for x in box]})
    labels = sorted({one["category_id"] for one in annotations})
    return {
        "images": [{"id": number} for number in range(len(detections))],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in labels],
    }


def coco_results(
    detections: Sequence[Sequence[Row]], image_ids: Sequence[Any], categories: Sequence[Any], threshold: float
) -> list[dict[str, Any]]:
    """COCO results from the rows of each image.

    Args:
        detections: the rows of each image.
        image_ids: the id of each image.
        categories: the id of each label's category; None for one that the ground truth does not have.
        threshold: the score below which rows are dropped, on both sides.
    """
    return [
        {
            "image_id": image_id,
            "category_id": categories[int(label)],
            "score": score,
            "bbox": [x, y, x2 - x, y2 - y],
        }
        for image_id, rows in zip(image_ids, detections, strict=True)
        for x, y, x2, y2, score, label in rows
        if score >= threshold and categories[int(label)] is not None
    ]


def _check(text: str, agrees: bool) -> Check:
    return Check(text + ("" if agrees else ": **they differ**"), agrees)
