"""The candidates are the best pairs, in a fixed order, by whichever way they are found and in whichever type."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efficientdet.inference import postprocess as module
from efficientdet.inference.postprocess import Candidates, select_candidates

THRESHOLDS = st.sampled_from([0.0, 0.001, 0.2, 0.5, 0.9, 0.99])
ODD = (float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 3e38, -3e38)


def random_levels(seed: int, anchors: int, classes: int, odd: int = 0) -> list[Tensor]:
    """Two levels of two pictures, with few values and so many ties; some of them odd."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(0, 2, (2, anchors, classes)) * 8) / 8
    places = rng.integers(0, logits.size, odd)
    logits.reshape(-1)[places] = rng.choice(ODD, odd)
    whole = torch.from_numpy(logits).float()
    return [whole[:, : anchors // 3], whole[:, anchors // 3 :]]


def pairs(found: Candidates, row: int) -> list[tuple[float, int, int]]:
    held = found.logits[row] > -float("inf")
    columns = (found.logits[row][held], found.anchor_indices[row][held], found.labels[row][held])
    return list(zip(*(x.tolist() for x in columns), strict=True))


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 6), st.integers(1, 80), THRESHOLDS, st.integers(0, 9))
def test_they_are_the_best_pairs(seed: int, anchors: int, classes: int, limit: int, threshold: float, odd: int) -> None:
    levels = random_levels(seed, anchors, classes, odd)
    logits = torch.cat(levels, 1)
    for few in (module.FEW, 0):
        with mock.patch.object(module, "FEW", few):
            found = select_candidates(levels, limit, threshold)
        for i in range(2):
            good = (logits[i].double().sigmoid() >= threshold) & logits[i].isfinite()
            # Of equal ones the earlier anchor comes first, then the lower class; at the limit, any will do.
            ordered = sorted((-float(logits[i, a, k]), a, k) for a, k in good.nonzero().tolist())
            expected = [(-x, a, k) for x, a, k in ordered]
            ours = pairs(found, i)
            assert [x for x, _, _ in ours] == [x for x, _, _ in expected[:limit]]
            assert ours == [pair for pair in expected if pair in ours]


@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0, 1), st.integers(0, 20))
def test_bfloat16_is_read_as_the_numbers_that_it_stands_for(seed: int, limit: int, threshold: float, odd: int) -> None:
    rng = np.random.default_rng(seed)
    levels = [(level + torch.from_numpy(rng.normal(0, 1e-2, level.shape))).bfloat16() for level in
              random_levels(seed, 20, 5, odd)]  # fmt: skip
    found, expected = (select_candidates(x, limit, threshold) for x in (levels, [level.float() for level in levels]))
    assert found.logits.dtype == torch.float32
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_logits_at_the_threshold_itself_are_good_enough(kind: torch.dtype) -> None:
    """Both neighbors of the threshold's logit in this type, and 0 of both signs."""
    for threshold in (0.3, 0.5, 0.7):
        logit = torch.logit(torch.tensor(threshold, dtype=torch.float64)).to(torch.float32)
        near = logit.to(kind)
        step = 2.0 ** (-8 if kind == torch.bfloat16 else -22)
        values = torch.stack([near, near * (1 + step), near * (1 - step), near * 0]).to(kind)
        found = select_candidates([values.reshape(1, 4, 1)], 10, threshold)
        assert sorted(found.anchor_indices[0].tolist()) == (values.float() >= logit).nonzero()[:, 0].tolist()


def test_large_levels_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = random_levels(3, 50, 7)
    expected = select_candidates(levels, 1000, 0.4)
    monkeypatch.setattr(module, "CHUNK", 11)
    for ours, theirs in zip(select_candidates(levels, 1000, 0.4), expected, strict=True):
        assert torch.equal(ours, theirs)
