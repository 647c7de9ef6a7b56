"""What counts as the same, and what does not."""

from __future__ import annotations

import numpy as np
import pytest
from checks import (
    AP_TOLERANCE,
    EXAMPLE_PIXELS,
    PIXEL_TOLERANCE,
    REDUCED_AP_TOLERANCE,
    SCORE_TOLERANCE,
    coco_results,
    ground_truth_of,
    match,
    same_ap,
    same_detections,
    same_example,
    same_input,
    same_loss,
)

ROWS = [[10.0 * i, 5.0, 10.0 * i + 8, 40.0, 0.9 - 0.008 * i, i % 3] for i in range(100)]


def moved(pixels: float = 0.0, scores: float = 0.0, label: int = 0) -> list[list[float]]:
    return [[*(x + pixels for x in row[:4]), row[4] + scores, row[5] + label] for row in ROWS]


@pytest.mark.parametrize(
    ("theirs", "agrees"),
    [
        (moved(), True),
        (moved(pixels=0.9 * PIXEL_TOLERANCE, scores=0.9 * SCORE_TOLERANCE), True),
        (moved(pixels=1.1 * PIXEL_TOLERANCE), False),
        (moved(scores=1.1 * SCORE_TOLERANCE), False),
        (moved(label=1), False),
        (ROWS[:-1] + [[900.0, 0.0, 950.0, 9.0, 0.1, 1]], True),  # at the cut to 100 one may be another
        (ROWS[:-3] + [[900.0, 0.0, 950.0, 9.0, 0.1, 1]] * 3, False),
        (ROWS[:97], False),
        ([], False),
    ],
)
def test_detections(theirs: list[list[float]], agrees: bool) -> None:
    check = same_detections("ours", [ROWS], [theirs], threshold=0.05)
    assert check.agrees is agrees
    assert ("they differ" in check.text) is not agrees


def test_the_peers_detections_under_our_threshold_do_not_count() -> None:
    assert same_detections("ours", [ROWS], [[*ROWS, [0.0, 0.0, 9.0, 9.0, 0.04, 0]]], threshold=0.05).agrees
    assert not same_detections("ours", [[]], [[]], threshold=0.05).agrees  # nothing shows nothing


def test_detections_of_several_images_are_compared_image_by_image() -> None:
    one, other = ROWS[:50], ROWS[50:]
    assert same_detections("ours", [one, other], [one, other], 0.05).agrees
    assert not same_detections("ours", [one, other], [other, one], 0.05).agrees


def test_each_detection_is_matched_once() -> None:
    twice = [ROWS[0], ROWS[0]]
    assert match([ROWS[0]], twice, 1, 1).number == 1
    found = match(moved(pixels=0.5)[:2], ROWS[:2], 1, 1)
    assert (found.number, found.pixels, found.scores) == (2, 0.5, 0)


def test_inputs_must_be_equal_inside_the_image_and_may_differ_in_the_padding() -> None:
    ours = np.zeros((3, 8, 8), np.float32)
    padded, inside = ours.copy(), ours.copy()
    padded[:, 6:] = 0.005
    inside[1, 2, 3] = 0.005
    std = (60.0, 50.0, 40.0)
    check = same_input(ours, padded, (6, 8), std)
    assert check.agrees and "0.3 in the padding" in check.text
    check = same_input(ours, inside, (6, 8), std)
    assert not check.agrees and "0.25 apart inside" in check.text


def test_losses_and_ap() -> None:
    assert same_loss("fp32", 4.0, 4.0003).agrees and not same_loss("fp32", 4.0, 4.001).agrees
    assert same_loss("bf16", 4.0, 4.1).agrees and not same_loss("bf16", 4.0, 4.3).agrees
    assert same_ap("ours", 0.3, 0.3 + 0.9 * AP_TOLERANCE).agrees
    check = same_ap("ours", 0.3, 0.3 + 1.1 * AP_TOLERANCE)
    assert not check.agrees and "AP 0.3000, effdet 0.3011" in check.text
    assert same_ap("ours", 0.3, 0.3 + 1.1 * AP_TOLERANCE, REDUCED_AP_TOLERANCE).agrees


def test_the_example_must_find_exactly_the_same() -> None:
    assert same_example([ROWS, []], [moved(pixels=0.9 * EXAMPLE_PIXELS), []]).agrees
    assert not same_example([ROWS], [moved(pixels=1.1 * EXAMPLE_PIXELS)]).agrees
    assert not same_example([ROWS], [ROWS[:-1]]).agrees
    assert not same_example([ROWS[:-1]], [ROWS]).agrees
    assert not same_example([[]], [[]]).agrees


def test_a_made_up_ground_truth_is_the_same_each_time_and_neither_trivial_nor_hopeless() -> None:
    from efficientdet.evaluation.coco_ap import coco_metrics

    truth = ground_truth_of([ROWS, ROWS[:5]])
    assert truth == ground_truth_of([ROWS, ROWS[:5]])
    assert len(truth["annotations"]) == 25
    results = coco_results([ROWS, ROWS[:5]], [0, 1], [0, 1, 2], 0.0)
    assert 0.2 < coco_metrics(truth, results).ap < 0.9


def test_results_leave_out_faint_rows_and_classes_that_the_ground_truth_lacks() -> None:
    found = coco_results(
        [[[1.0, 2.0, 4.0, 8.0, 0.5, 0], [0.0, 0.0, 1.0, 1.0, 0.0005, 0], ROWS[1]]], ["a"], [7, None], 0.001
    )
    assert found == [{"image_id": "a", "category_id": 7, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}]
