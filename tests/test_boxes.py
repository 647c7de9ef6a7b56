"""Box geometry: areas, IoU, clipping, and the coding of boxes as deltas."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.boxes import (
    MAX_LOG_RATIO,
    aligned_iou,
    box_areas,
    clip_boxes,
    decode_deltas,
    encode_boxes,
    generalized_iou,
    pairwise_iou,
)


def boxes(least: int = 0, side: float = 0.0) -> st.SearchStrategy[np.ndarray]:
    """(N, 4) float32 boxes_xyxy with sides of at least `side`, some far outside of any picture."""
    corners = st.floats(-500, 2000, width=32)
    sides = st.floats(side, 1000, width=32)

    def pack(rows: list[tuple[float, float, float, float]]) -> np.ndarray:
        return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)

    return st.lists(st.tuples(corners, corners, sides, sides), min_size=least, max_size=6).map(pack)


def literal_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes in float64, as in the textbook."""
    ax1, ay1, ax2, ay2 = (float(v) for v in a)
    bx1, by1, bx2, by2 = (float(v) for v in b)
    width = max(0.0, min(ax2, bx2) - max(ax1, bx1))
    height = max(0.0, min(ay2, by2) - max(ay1, by1))
    union = max(0.0, ax2 - ax1) * max(0.0, ay2 - ay1) + max(0.0, bx2 - bx1) * max(0.0, by2 - by1)
    union -= width * height
    return width * height / union if union > 0 else 0.0


@given(boxes(), boxes())
def test_iou_is_the_textbooks(first: np.ndarray, second: np.ndarray) -> None:
    found = pairwise_iou(torch.from_numpy(first).double(), torch.from_numpy(second).double())
    assert found.shape == (len(first), len(second))
    expected = np.array([[literal_iou(a, b) for b in second] for a in first]).reshape(found.shape)
    assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(boxes(1, 0.125), boxes(1))
def test_iou_in_float32(first: np.ndarray, second: np.ndarray) -> None:
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    found = pairwise_iou(a, b)
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    assert torch.equal(found, pairwise_iou(b, a).T)
    assert torch.allclose(pairwise_iou(a, a).diagonal(), torch.ones(len(a)))
    few = min(len(a), len(b))
    assert torch.equal(aligned_iou(a[:few], b[:few]), pairwise_iou(a[:few], b[:few]).diagonal())


def test_iou_of_touching_empty_inverted_and_batched_boxes() -> None:
    a = torch.tensor([[0.0, 0, 2, 2]])
    others = torch.tensor([[2.0, 0, 4, 2], [1, 1, 1, 1], [2, 2, 0, 0], [0, 0, 1, 2], [0, 0, 2, 2]])
    assert pairwise_iou(a, others).tolist() == [[0.0, 0.0, 0.0, 0.5, 1.0]]
    assert pairwise_iou(others[1:2], others[1:2]).tolist() == [[0.0]]
    batch = pairwise_iou(torch.stack([a, a + 1]), torch.stack([others, others + 1]))
    assert torch.equal(batch[0], batch[1]) and batch.shape == (2, 1, 5)


@given(boxes(1, 0.5), boxes(1, 0.5))
def test_generalized_iou_is_the_papers(first: np.ndarray, second: np.ndarray) -> None:
    count = min(len(first), len(second))
    a, b = torch.from_numpy(first[:count]).double(), torch.from_numpy(second[:count]).double()
    for one, other, value in zip(a, b, generalized_iou(a, b), strict=True):
        around = torch.cat([torch.minimum(one[:2], other[:2]), torch.maximum(one[2:], other[2:])])
        iou, areas = aligned_iou(one, other), box_areas(torch.stack([one, other])).sum()
        union, whole = areas / (1 + iou), box_areas(around)  # shared = iou * union, areas = union + shared
        assert value.item() == pytest.approx((iou - (whole - union) / whole).item(), abs=1e-9)
        assert -1 <= value <= iou + 1e-12


def test_generalized_iou_tells_how_far_apart_boxes_are() -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0]).expand(3, 4)
    others = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [90.0, 0.0, 100.0, 10.0]])
    assert generalized_iou(box, others).tolist() == pytest.approx([1.0, -1 / 3, -0.8])


def test_areas() -> None:
    assert box_areas(torch.tensor([[1.0, 2, 4, 6], [1, 1, 1, 5], [4, 4, 1, 1]])).tolist() == [12.0, 0.0, 0.0]


@given(boxes(1, 0.5), st.data())
def test_round_trip(targets: np.ndarray, data: st.DataObject) -> None:
    anchors = data.draw(boxes(len(targets), 8.0))[: len(targets)]
    a, b = torch.from_numpy(anchors).double(), torch.from_numpy(targets).double()
    deltas = encode_boxes(b, a)
    assert deltas.shape == b.shape
    # The clamp begins at ratios of 62.5; what lies beyond it does not come back, by intention.
    within = (deltas[:, 2:] <= MAX_LOG_RATIO).all(1)
    assert torch.allclose(decode_deltas(deltas, a)[within], b[within], rtol=1e-7, atol=1e-5)


def test_coding_by_hand() -> None:
    anchor = torch.tensor([[10.0, 20.0, 30.0, 30.0]])  # center (20, 25), 20 wide, 10 high
    deltas = torch.tensor([[0.5, -1.0, math.log(2), 0.0]])
    expected = torch.tensor([[10.0, 10.0, 50.0, 20.0]])  # center (30, 15), 40 wide, 10 high
    assert torch.allclose(decode_deltas(deltas, anchor), expected, atol=1e-4)
    assert torch.allclose(encode_boxes(expected, anchor), deltas, atol=1e-6)
    batch = decode_deltas(deltas.expand(3, 1, 4), anchor)
    assert batch.shape == (3, 1, 4) and torch.equal(batch[0], batch[2])


@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_decoding_stays_finite(deltas: np.ndarray) -> None:
    anchors = torch.tensor([[-64.0, -64.0, 2000.0, 2000.0]]).expand(5, 4)
    found = decode_deltas(torch.from_numpy(deltas), anchors)
    assert found.isfinite().all()
    sides = found[:, 2:] - found[:, :2]
    assert (sides >= 0).all()


def test_sides_grow_at_most_to_the_clamp() -> None:
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    found = decode_deltas(torch.tensor([[0.0, 0.0, 500.0, 500.0]]), anchors)
    assert torch.allclose(found[0, 2:] - found[0, :2], torch.tensor(32.0 * 1000 / 16))


@given(boxes(1), st.integers(1, 900), st.integers(1, 900))
def test_clipping(rows: np.ndarray, height: int, width: int) -> None:
    found = clip_boxes(torch.from_numpy(rows)[None], torch.tensor([[height, width]], dtype=torch.float32))
    expected = np.stack([np.clip(rows[:, i], 0, width if i % 2 == 0 else height) for i in range(4)], axis=1)
    assert np.array_equal(found[0].numpy(), expected)


def test_clipping_takes_each_pictures_own_size() -> None:
    row = torch.tensor([[-5.0, -5.0, 100.0, 100.0]])
    found = clip_boxes(torch.stack([row, row]), torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    assert found.tolist() == [[[0.0, 0.0, 20.0, 10.0]], [[0.0, 0.0, 40.0, 30.0]]]


@pytest.mark.parametrize("deltas", [(5, 4), (2, 5, 4), (6, 3)])
def test_wrong_shapes_are_named(deltas: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        decode_deltas(torch.zeros(deltas), torch.zeros(6, 4))
    assert str(deltas) in str(caught.value) and "(6, 4)" in str(caught.value)
