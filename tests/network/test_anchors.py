"""Anchors beyond the goldens: any size, their order, the cache."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.family import MODELS, level_sizes
from efficientdet.network.anchors import make_anchors

D0 = MODELS["d0"]


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(7, 8))
def test_level_sizes_are_rounded_up(height: int, width: int, last: int) -> None:
    sizes = level_sizes((height, width), (3, last))
    expected = [(math.ceil(height / 2**i), math.ceil(width / 2**i)) for i in range(3, last + 1)]
    assert sizes == expected


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["d0", "d7", "d7x", "lite0"]))
def test_anchors_are_centerd_on_an_even_grid(height: int, width: int, name: str) -> None:
    spec = MODELS[name]
    anchors = make_anchors(spec, (height, width)).double()
    start = 0
    for rows, columns in level_sizes((height, width), spec.levels):
        level = anchors[start : start + rows * columns * 9].reshape(rows, columns, 9, 4)
        start += rows * columns * 9
        centers = (level[..., :2] + level[..., 2:]) / 2
        x = (torch.arange(columns).double() + 0.5) * width / columns
        y = (torch.arange(rows).double() + 0.5) * height / rows
        assert torch.allclose(centers[..., 0], x[None, :, None].expand(rows, columns, 9), atol=1e-3)
        assert torch.allclose(centers[..., 1], y[:, None, None].expand(rows, columns, 9), atol=1e-3)
        sides = (level[..., 2:] - level[..., :2])[0, 0]
        scale = torch.tensor([width / columns, height / rows]) * spec.anchor_scale
        factors = [
            [2 ** (octave / 3) * wide, 2 ** (octave / 3) * high] for octave in range(3) for wide, high in spec.aspects
        ]
        assert torch.allclose(sides, torch.tensor(factors).double() * scale, rtol=1e-4)
    assert start == len(anchors)


def test_anchors_by_hand() -> None:
    anchors = make_anchors(D0, (128, 128))
    assert anchors.dtype == torch.float32 and anchors.shape == ((256 + 64 + 16 + 4 + 1) * 9, 4)
    # Stride 8, scale 4: 32 px around (4, 4); then 1.4 wide and 0.7 high; third octave steps after three aspects.
    assert anchors[0].tolist() == [-12.0, -12.0, 20.0, 20.0]
    assert anchors[1].tolist() == pytest.approx([4 - 22.4, 4 - 11.2, 4 + 22.4, 4 + 11.2])
    assert anchors[3].tolist() == pytest.approx([4 - 16 * 2 ** (1 / 3)] * 2 + [4 + 16 * 2 ** (1 / 3)] * 2)
    assert anchors[9].tolist() == [-4.0, -12.0, 28.0, 20.0]  # the next column
    assert anchors[16 * 9].tolist() == [-12.0, -4.0, 20.0, 28.0]  # the next row


def test_octaves_and_aspects_come_from_the_spec() -> None:
    spec = dataclasses.replace(D0, octaves=2, aspects=((1.0, 1.0),))
    anchors = make_anchors(spec, (8, 8))
    assert len(anchors) == 5 * spec.anchors_per_cell == 10
    assert anchors[1, 2] - anchors[1, 0] == pytest.approx(32 * math.sqrt(2))


def test_anchors_are_made_once_for_each_size() -> None:
    first = make_anchors(D0, (64, 96))
    assert make_anchors(D0, (64, 96)) is first
    assert make_anchors(D0, (96, 64)) is not first
    assert make_anchors(MODELS["d7"], (64, 96)) is not first


def test_anchors_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        anchors = make_anchors(D0, (72, 40))
    weight = torch.ones(4, requires_grad=True)
    (anchors * weight).sum().backward()
    assert weight.grad is not None
