"""The heads: layout of their outputs, what is shared, and how they start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efficientdet.network.heads import Head


def _head(outputs: int = 3, prior: float | None = None, depth: int = 2) -> Head:
    torch.manual_seed(0)
    return Head(8, depth, 2, 9, outputs, "swish", "same", True, prior).eval()


def test_outputs_are_ordered_row_column_anchor() -> None:
    head = _head()
    pyramid = [torch.randn(2, 8, 4, 5), torch.randn(2, 8, 2, 3)]
    with torch.no_grad():
        fine, coarse = head(pyramid)
        maps = []  # the same tower, written out, in NCHW
        for level, x in enumerate(pyramid):
            for conv, bns in zip(head.convs, head.bns, strict=True):
                x = nn.functional.silu(bns[level](conv(x)))  # type: ignore[index]
            maps.append(head.predict(x))
    assert fine.shape == (2, 4 * 5 * 9, 3) and coarse.shape == (2, 2 * 3 * 9, 3)
    for row in range(4):
        for column in range(5):
            for anchor in range(9):
                expected = maps[0][:, anchor * 3 : anchor * 3 + 3, row, column]
                assert torch.equal(fine[:, (row * 5 + column) * 9 + anchor], expected)


def test_convolutions_are_shared_and_batch_norms_are_not() -> None:
    head = _head()
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        one, other = head([x, x])
        assert torch.equal(one, other)
        head.bns[0][1].weight.mul_(2)  # type: ignore[index]
        after_one, after_other = head([x, x])
        assert torch.equal(after_one, one) and not torch.allclose(after_other, other)
        head.convs[0].depthwise.weight.mul_(2)  # type: ignore[union-attr, operator]
        assert not torch.allclose(head([x, x])[0], one)


@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_class_scores_start_at_the_prior(prior: float) -> None:
    head = _head(prior=prior)
    with torch.no_grad():
        scores = head([torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 1, 1)])[0].sigmoid()
    assert torch.allclose(scores, torch.tensor(prior))


def test_boxes_start_at_their_anchors() -> None:
    with torch.no_grad():
        deltas = _head(outputs=4)([torch.zeros(1, 8, 2, 2)])[0]
    assert (deltas == 0).all()


def test_no_layers_but_the_last() -> None:
    assert _head(depth=0)([torch.zeros(1, 8, 1, 1)])[0].shape == (1, 9, 3)
