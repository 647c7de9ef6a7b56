"""Tiles cover an image, and overlap as asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.images.tiles import cut, starts


@given(st.integers(1, 5000), st.integers(32, 900), st.floats(0, 0.9))
def test_tiles_cover_a_side_and_overlap_as_asked(length: int, size: int, overlap: float) -> None:
    found = starts(length, size, overlap)
    assert found[0] == 0 and len(set(found)) == len(found)
    if length <= size:
        assert found == [0]
        return
    assert found[-1] == length - size
    steps = np.diff(found)
    assert (steps > 0).all() and steps.max() <= max(1, int(size * (1 - overlap)) + 1)
    assert steps.max() - steps.min() <= 1


@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 400), st.floats(0, 0.9))
def test_tiles_cover_an_image_and_are_of_full_size(height: int, width: int, size: int, overlap: float) -> None:
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in cut((height, width), size, overlap):
        assert (right - left, bottom - top) == (min(size, width), min(size, height))
        covered[top:bottom, left:right] = True
    assert covered.all()
