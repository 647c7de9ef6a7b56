"""The four fusions and NAS-FPN's pooling, as formulas."""

from __future__ import annotations

import math

import pytest
import torch

from efficientdet.errors import UnknownNameError
from efficientdet.network.fusion import FUSIONS, Fusion, GlobalAttention

WEIGHTS = [0.5, -1.0, 2.0]
MAPS = [2.0, 3.0, -4.0]  # each stands for a map of one value


def _fuse(kind: str, weights: list[float] = WEIGHTS, maps: list[float] = MAPS) -> float:
    fusion = Fusion(kind, len(weights)).double()
    if fusion.weights is not None:
        with torch.no_grad():
            fusion.weights.copy_(torch.tensor(weights))
    found = fusion([torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in maps])
    return float(found.detach())


def test_formulas() -> None:
    exponentials = [math.exp(w) for w in WEIGHTS]
    assert _fuse("none") == pytest.approx(1.0)
    assert _fuse("unbounded") == pytest.approx(0.5 * 2 - 1.0 * 3 - 2 * 4)
    softmax = sum(e * x for e, x in zip(exponentials, MAPS, strict=True)) / sum(exponentials)
    assert _fuse("softmax") == pytest.approx(softmax)
    assert _fuse("fast") == pytest.approx((0.5 * 2 - 2 * 4) / (2.5 + 1e-4))


def test_weights_start_equal_and_only_none_has_none() -> None:
    for kind in FUSIONS:
        fusion = Fusion(kind, 3)
        if kind == "none":
            assert fusion.weights is None and fusion.normalized_weights() is None
        else:
            assert fusion.weights is not None and fusion.weights.tolist() == [1.0, 1.0, 1.0]


def test_fast_and_softmax_are_bounded() -> None:
    for kind in ("fast", "softmax"):
        fusion = Fusion(kind, 3)
        with torch.no_grad():
            fusion.weights.copy_(torch.tensor([30.0, -5.0, 7.0]))  # type: ignore[union-attr]
        weights = fusion.normalized_weights()
        assert weights is not None
        assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1.0, abs=1e-4)


def test_fast_fusion_of_all_negative_weights_is_zero_not_nan() -> None:
    assert _fuse("fast", [-1.0, -2.0, -3.0]) == 0.0


def test_weights_follow_the_maps_dtype() -> None:
    maps = [torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)] * 2
    assert Fusion("fast", 2)(maps).dtype == torch.bfloat16


def test_inputs_are_left_alone_and_all_weights_learn() -> None:
    for kind in ("fast", "softmax", "unbounded"):
        maps = [torch.randn(2, 3, 4, 4) for _ in range(3)]
        before = [x.clone() for x in maps]
        fusion = Fusion(kind, 3)
        fusion(maps).square().sum().backward()
        assert all(torch.equal(x, y) for x, y in zip(maps, before, strict=True))
        assert fusion.weights is not None and fusion.weights.grad is not None
        assert (fusion.weights.grad != 0).all()


def test_global_pooling() -> None:
    x, y, z = torch.randn(3, 2, 4, 5, 6).unbind()
    pooled = y + x.mean((2, 3), keepdim=True).sigmoid() * x
    assert torch.allclose(GlobalAttention("fast", 2)([x, y]), pooled)
    assert not list(GlobalAttention("fast", 2).parameters())
    assert torch.allclose(GlobalAttention("none", 3)([z, x, y]), z + pooled)
    weighted = GlobalAttention("unbounded", 3)
    with torch.no_grad():
        weighted.weights.copy_(torch.tensor([3.0, -2.0]))  # type: ignore[union-attr]
    assert torch.allclose(weighted([z, x, y]), 3 * z - 2 * pooled, atol=1e-6)


def test_unknown_fusion() -> None:
    with pytest.raises(UnknownNameError, match="unknown fusion 'fastest'; did you mean 'fast'.*unbounded"):
        Fusion("fastest", 2)
