"""Matching beyond the goldens: awkward boxes, and a slow literal version on random ones."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from efficientdet.boxes import decode_deltas, pairwise_iou
from efficientdet.family import MODELS, level_sizes
from efficientdet.network.anchors import make_anchors
from efficientdet.training.assignment import (
    BACKGROUND,
    IGNORED,
    Matcher,
    Matches,
    leave_out_ignored,
    match_anchors,
    match_atss,
    match_batch,
    match_task_aligned,
)

ANCHORS = make_anchors(MODELS["d0"], (128, 128))
EMPTY = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def _match(boxes: list[list[float]], labels: list[int] | None = None, anchors: Tensor = ANCHORS) -> Matches:
    numbers = list(range(len(boxes))) if labels is None else labels
    return match_anchors(anchors, torch.tensor(boxes, dtype=torch.float32), torch.tensor(numbers))


def test_no_boxes() -> None:
    found = match_anchors(ANCHORS, *EMPTY)
    assert found.labels.dtype == torch.int64 and found.deltas.dtype == torch.float32
    assert found.labels.shape == (len(ANCHORS),) and (found.labels == BACKGROUND).all()
    assert found.deltas.shape == (len(ANCHORS), 4) and (found.deltas == 0).all()


def test_targets_decode_to_the_box() -> None:
    box = [20.0, 30.0, 75.0, 70.0]
    found = _match([box], [7])
    positive = found.labels != BACKGROUND
    assert positive.any() and set(found.labels[positive].tolist()) == {7}
    decoded = decode_deltas(found.deltas[positive], ANCHORS[positive])
    assert torch.allclose(decoded, torch.tensor(box).expand_as(decoded), atol=1e-3)
    iou = pairwise_iou(torch.tensor([box]), ANCHORS)[0]
    assert torch.equal(positive, iou >= 0.5)  # a good fit exists, so nothing is forced beyond the threshold


def test_a_duplicate_changes_nothing_and_the_first_label_wins() -> None:
    box = [40.0, 40.0, 80.0, 90.0]
    once, twice = _match([box], [3]), _match([box, box], [3, 5])
    assert torch.equal(once.labels, twice.labels) and torch.equal(once.deltas, twice.deltas)


def test_the_first_box_wins_a_shared_anchor() -> None:
    """Two boxes of no great IoU with anything claim one anchor: the first has it, though the second fits better."""
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0], [100.0, 100.0, 132.0, 132.0]])
    worse, better = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 20.0, 20.0]
    for first, second in ((worse, better), (better, worse)):
        found = _match([first, second], [4, 9], anchors)
        assert found.labels.tolist() == [4, BACKGROUND]
        assert torch.allclose(decode_deltas(found.deltas, anchors)[0], torch.tensor(first), atol=1e-3)


def test_a_forced_anchor_leaves_the_box_that_fits_it_better() -> None:
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    # The second box is the anchor; the first one claims it all the same, being first.
    assert _match([[0, 0, 8, 8], [0, 0, 32, 32]], [1, 2], anchors).labels.tolist() == [1]


def test_of_tied_anchors_the_first_is_forced() -> None:
    found = _match([[61.0, 61.0, 63.0, 63.5]])  # inside many anchors of the smallest size
    iou = pairwise_iou(torch.tensor([[61.0, 61.0, 63.0, 63.5]]), ANCHORS)[0]
    tied = (iou >= iou.max() * (1 - 1e-5)).nonzero()[:, 0]
    assert len(tied) > 1
    assert (found.labels != BACKGROUND).nonzero()[:, 0].tolist() == [int(tied[0])]


def test_a_tiny_box_is_forced_on_an_anchor_around_it() -> None:
    """IoU down to 1e-8: a tolerance in units of IoU would call all anchors tied."""
    box = [100.0, 100.0, 100.01, 100.01]
    found = _match([box])
    (anchor,) = (found.labels != BACKGROUND).nonzero()[:, 0].tolist()
    assert ANCHORS[anchor, 0] <= 100 <= ANCHORS[anchor, 2] and ANCHORS[anchor, 1] <= 100 <= ANCHORS[anchor, 3]


def test_a_box_that_meets_no_anchor_takes_none_and_no_ones() -> None:
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0], [40.0, 0.0, 72.0, 32.0]])
    outside, small = [500.0, 500.0, 520.0, 520.0], [0.0, 0.0, 10.0, 10.0]
    assert _match([outside], None, anchors).labels.tolist() == [BACKGROUND] * 2
    for rows, labels in (([outside, small], [1, 2]), ([small, outside], [2, 1])):
        assert _match(rows, labels, anchors).labels.tolist() == [2, BACKGROUND]


@pytest.mark.parametrize("box", [[10.0, 10.0, 10.0, 40.0], [50.0, 20.0, 20.0, 60.0], [5.0, 5.0, 5.0, 5.0]])
def test_degenerate_boxes_match_nothing(box: list[float]) -> None:
    found = _match([box])
    assert (found.labels == BACKGROUND).all() and (found.deltas == 0).all()


def test_many_boxes_stay_finite() -> None:
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 128
    boxes = torch.cat([corners, corners + torch.rand(300, 2) * 60 + 0.1], 1)
    found = match_anchors(ANCHORS, boxes, torch.arange(300))
    assert found.deltas.isfinite().all()
    assert ((found.labels >= 0) & (found.labels < 300) | (found.labels == BACKGROUND)).all()


def literal(anchors: np.ndarray, boxes: np.ndarray) -> list[int]:
    """Index of each anchor's box, or -1: one anchor and one box at a time."""
    iou = pairwise_iou(torch.from_numpy(boxes).double(), torch.from_numpy(anchors).double()).numpy()
    result = []
    for anchor in range(len(anchors)):
        best = max(range(len(boxes)), key=lambda box: iou[box, anchor])
        result.append(best if iou[best, anchor] >= 0.5 else -1)
    for box in reversed(range(len(boxes))):
        anchor = max(range(len(anchors)), key=lambda a: iou[box, a])
        if iou[box, anchor] > 0:
            result[anchor] = box
    return result


# So small that no two different IoUs are nearer than the tolerance within which anchors tie.
whole = st.integers(0, 20)
rows = st.lists(st.tuples(whole, whole, st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=8)


@given(rows, rows)
def test_equals_the_literal_version(anchor_rows: list[tuple[int, ...]], box_rows: list[tuple[int, ...]]) -> None:
    anchors, boxes = (
        np.array([(x, y, x + w, y + h) for x, y, w, h in part], np.float32) for part in (anchor_rows, box_rows)
    )
    found = match_anchors(torch.from_numpy(anchors), torch.from_numpy(boxes), torch.arange(len(boxes)))
    expected = literal(anchors, boxes)
    assert found.labels.tolist() == expected
    for anchor, box in enumerate(expected):
        if box >= 0:
            sides = torch.from_numpy(boxes[box])
            assume(bool((found.deltas[anchor, 2:] < 4).all()))  # beyond, decoding clamps
            decoded = decode_deltas(found.deltas[anchor : anchor + 1], torch.from_numpy(anchors[anchor : anchor + 1]))
            assert torch.allclose(decoded[0], sides, atol=1e-3)


# ---- ignored regions
def test_anchors_half_in_an_ignored_region_are_left_out() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [4.9, 0, 14.9, 10], [5.1, 0, 15.1, 10], [40, 40, 50, 50], [0, 0, 10, 10]])
    labels = torch.tensor([[BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND, 3]])
    found = leave_out_ignored(labels, anchors, [torch.tensor([[0.0, 0, 10, 10]])])
    # The last is assigned to a box, which goes before.
    assert found.tolist() == [[IGNORED, IGNORED, BACKGROUND, BACKGROUND, 3]]
    assert labels.tolist() == [[-1, -1, -1, -1, 3]]


def test_without_regions_nothing_is_left_out() -> None:
    boxes, labels = [torch.tensor([[20.0, 30.0, 75.0, 70.0]])] * 2, [torch.tensor([1])] * 2
    plain = match_batch(ANCHORS, boxes, labels)
    with_none = match_batch(ANCHORS, boxes, labels, [EMPTY[0], EMPTY[0]])
    assert torch.equal(plain.labels, with_none.labels) and torch.equal(plain.deltas, with_none.deltas)


def test_regions_belong_to_their_image_and_count_as_no_box() -> None:
    region = torch.tensor([[0.0, 0.0, 128.0, 128.0]])
    boxes, labels = [torch.tensor([[20.0, 30.0, 75.0, 70.0]])] * 2, [torch.tensor([1])] * 2
    plain = match_batch(ANCHORS, boxes, labels)
    found = match_batch(ANCHORS, boxes, labels, [region, EMPTY[0]])
    assert torch.equal(found.labels[1], plain.labels[1])
    assert torch.equal(found.labels[0] >= 0, plain.labels[0] >= 0)
    assert (found.labels[0] == IGNORED).any() and torch.equal(found.deltas, plain.deltas)
    assert found.normalizer() == plain.normalizer()


@given(
    st.lists(st.tuples(*[st.floats(-40, 160, width=32)] * 4), min_size=1, max_size=4),
    st.lists(st.tuples(*[st.floats(-40, 160, width=32)] * 4), min_size=1, max_size=6),
)
def test_what_is_left_out_lies_in_a_region_by_half(
    regions: list[tuple[float, ...]], anchors: list[tuple[float, ...]]
) -> None:
    def boxes(rows: list[tuple[float, ...]]) -> np.ndarray:
        x1, y1, x2, y2 = np.array(rows, dtype=np.float64).T
        return np.stack([np.minimum(x1, x2), np.minimum(y1, y2), np.maximum(x1, x2) + 1, np.maximum(y1, y2) + 1], 1)

    first, second = boxes(anchors), boxes(regions)
    labels = torch.full((1, len(first)), BACKGROUND)
    found = leave_out_ignored(labels, torch.from_numpy(first).float(), [torch.from_numpy(second).float()])
    low, high = np.maximum(first[:, None, :2], second[None, :, :2]), np.minimum(first[:, None, 2:], second[None, :, 2:])
    shares = np.clip(high - low, 0, None).prod(-1).max(1) / (first[:, 2:] - first[:, :2]).prod(1)
    clear = np.abs(shares - 0.5) > 1e-4
    assert ((found[0].numpy() == IGNORED) == (shares > 0.5))[clear].all()


# ATSS and task alignment, against versions of one anchor and one box at a time

FEW = make_anchors(dataclasses.replace(MODELS["d0"], levels=(3, 5), octaves=1), (40, 32))
COUNTS = [3 * height * width for height, width in level_sizes((40, 32), (3, 5))]
CLASSES = 3
seeds = st.integers(0, 2**32 - 1)


def _random(seed: int, count: int) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Boxes of all sizes, partly outside of the image, their labels, and what the anchors predict."""
    generator = torch.Generator().manual_seed(seed)
    centers, sides = torch.rand(count, 2, generator=generator) * 40, torch.rand(count, 2, generator=generator) ** 3 * 40
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    logits, deltas = (torch.randn(len(FEW), last, generator=generator) for last in (CLASSES, 4))
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return boxes, labels, list(torch.split(logits * 3, COUNTS)), list(torch.split(deltas * 0.3, COUNTS))


def _iou(first: list[float], second: list[float]) -> float:
    width, height = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def _is_inside(anchor: list[float], box: list[float]) -> bool:
    """Whether the anchor's center lies in the box, which counts as at least 8 pixels wide and high."""
    return all(
        abs(anchor[i] + anchor[i + 2] - box[i] - box[i + 2]) / 2 <= max(box[i + 2] - box[i], 8.001) / 2 for i in (0, 1)
    )


def _best(chosen: dict[int, list[int]], iou: dict[tuple[int, int], float]) -> list[int]:
    """The box of each anchor, or -1: of those that chose it, the one of largest IoU."""
    return [max(chosen[a], key=lambda b: iou[b, a]) if a in chosen else -1 for a in range(len(FEW))]


@given(seeds, st.integers(1, 5))
def test_atss_equals_the_literal_version(seed: int, count: int) -> None:
    boxes, _, _, _ = _random(seed, count)
    found = match_atss(FEW, boxes, torch.arange(count), COUNTS, 3)
    anchors, chosen, iou = FEW.tolist(), {}, {}  # type: ignore[var-annotated]
    for b, box in enumerate(boxes.tolist()):
        candidates, start = [], 0
        for number in COUNTS:
            places = [anchors[a] for a in range(start, start + number, 3)]
            away = [math.dist([x1 + x2, y1 + y2], [box[0] + box[2], box[1] + box[3]]) for x1, y1, x2, y2 in places]
            nearest = sorted(range(len(places)), key=away.__getitem__)
            if len(nearest) > 9:
                assume(away[nearest[9]] - away[nearest[8]] > 1e-3)
            candidates += [start + 3 * place + i for place in nearest[:9] for i in range(3)]
            start += number
        values = [_iou(anchors[a], box) for a in candidates]
        threshold = np.mean(values) + np.std(values, ddof=1)
        assume(all(abs(value - threshold) > 1e-6 for value in values))
        for a, value in zip(candidates, values, strict=True):
            iou[b, a] = value
            if value > threshold and _is_inside(anchors[a], box):
                chosen.setdefault(a, []).append(b)
    assert found.labels.tolist() == _best(chosen, iou)
    assert found.alignment is None and found.normalizer() == len(chosen) + 1
    for a, b in enumerate(found.labels.tolist()):
        if b >= 0:
            assert torch.allclose(decode_deltas(found.deltas[a], FEW[a]), boxes[b], atol=1e-3)


@given(seeds, st.integers(1, 5))
def test_task_alignment_equals_the_literal_version(seed: int, count: int) -> None:
    boxes, labels, logits, deltas = _random(seed, count)
    outputs = [[x.double() for x in part] for part in (logits, deltas)]
    found = match_task_aligned(FEW, boxes, torch.arange(count), [x[:, labels] for x in outputs[0]], outputs[1], 3)
    scores, predicted = torch.cat(outputs[0]).sigmoid().tolist(), decode_deltas(torch.cat(outputs[1]), FEW).tolist()
    chosen, iou, t = {}, {}, {}  # type: ignore[var-annotated]
    for b, box in enumerate(boxes.tolist()):
        for a, anchor in enumerate(FEW.tolist()):
            iou[b, a] = _iou(predicted[a], box)
            t[b, a] = scores[a][labels[b]] * iou[b, a] ** 6 * _is_inside(anchor, box)
        for a in sorted(range(len(FEW)), key=lambda a, b=b: -t[b, a])[:13]:
            if t[b, a] > 0:
                chosen.setdefault(a, []).append(b)
    expected = _best(chosen, iou)
    assert found.labels.tolist() == expected and found.alignment is not None
    for a, b in enumerate(expected):
        own = [other for other in range(len(FEW)) if expected[other] == b]
        largest_t, largest_iou = (max(values[b, other] for other in own) if b >= 0 else 0.0 for values in (t, iou))
        assert found.alignment[a].item() == pytest.approx(t[b, a] / largest_t * largest_iou if b >= 0 else 0.0)
        if b >= 0:
            assert torch.allclose(decode_deltas(found.deltas[a], FEW[a]), boxes[b], atol=1e-3)
    assert found.normalizer().item() == pytest.approx(found.alignment.sum().item() + 1)


def _matchers(dtype: torch.dtype = torch.float32) -> list[Matcher]:
    _, _, logits, deltas = ([x.to(dtype) for x in part] for part in _random(0, 1))
    return [
        partial(match_atss, level_counts=COUNTS, per_place=3),
        partial(match_task_aligned, class_logits=logits, box_deltas=deltas, per_place=3),
    ]


@pytest.mark.parametrize("match", _matchers())
def test_every_box_in_the_image_gets_an_anchor_and_none_without_a_side(match: Matcher) -> None:
    small = torch.tensor([[15.9, 15.9, 16.1, 16.1], [3.0, 3.0, 5.0, 5.0], [24.0, 0.0, 24.1, 40.0]])
    assert set(match(FEW, small, torch.arange(3)).labels.tolist()) == {BACKGROUND, 0, 1, 2}
    nothing = torch.tensor([[10.0, 10.0, 10.0, 20.0], [20.0, 20.0, 10.0, 30.0], [900.0, 900.0, 920.0, 920.0]])
    for boxes, labels in ((nothing, torch.arange(3)), EMPTY):
        found = match(FEW, boxes, labels)
        assert (found.labels == BACKGROUND).all() and (found.deltas == 0).all() and found.normalizer() == 1
        assert found.alignment is None or (found.alignment == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_alignment_is_computed_in_float32(dtype: torch.dtype) -> None:
    boxes, labels, _, _ = _random(1, 4)
    half, raised = _matchers(dtype)[1], _matchers(dtype)[1]
    raised.keywords.update(
        {name: [x.float() for x in raised.keywords[name]] for name in ("class_logits", "box_deltas")}
    )  # type: ignore[attr-defined]
    with torch.autocast("cpu", dtype):
        found = half(FEW, boxes, labels)
    expected = raised(FEW, boxes, labels)
    assert found.alignment is not None and found.alignment.dtype == torch.float32
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))  # type: ignore[arg-type]


def test_a_batch_has_a_matcher_for_each_image() -> None:
    boxes, labels, logits, deltas = _random(2, 4)
    matchers = [
        partial(match_task_aligned, class_logits=logits, box_deltas=[x * scale for x in deltas], per_place=3)
        for scale in (1.0, 0.0, 1.0)
    ]
    region, none = torch.tensor([[0.0, 0.0, 40.0, 40.0]]), EMPTY[0]
    images = [boxes, boxes, none], [labels, labels, EMPTY[1]]
    found = match_batch(FEW, *images, [region, none, region], matchers)
    assert found.alignment is not None and found.alignment.shape == found.labels.shape == (3, len(FEW))
    for i, match in enumerate(matchers):
        own = match(FEW, images[0][i], images[1][i])
        assert own.alignment is not None and torch.equal(found.alignment[i], own.alignment)
        assert torch.equal(found.labels[i].clamp(min=BACKGROUND), own.labels)
    assert not torch.equal(found.alignment[0], found.alignment[1])
    assert [bool((image == IGNORED).any()) for image in found.labels] == [True, False, True]
