from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.boxes import pairwise_iou
from efficientdet.data.quality.anchors import (
    AnchorReport,
    anchor_findings,
    best_anchor_iou,
    boxes_at,
    check_anchors,
    options_of,
    typical_aspects,
)
from efficientdet.data.records import ImageRecord, Records
from efficientdet.family import ModelSpec, aspect_factors, find_spec
from efficientdet.images.letterbox import letterbox_scale
from efficientdet.network.anchors import make_anchors


def records_of(boxes: list[list[float]], size: tuple[int, int] = (320, 320), ignored: int = 0) -> Records:
    count = len(boxes)
    record = ImageRecord(
        1, Path("a.jpg"), size[1], size[0], np.array(boxes, dtype=np.float32).reshape(-1, 4), np.zeros(count, np.int64),
        np.arange(count) < ignored, np.zeros(count, np.float32), list(range(count)),
    )  # fmt: skip
    return Records([record], ("x",), (1,), Path("x"))


@st.composite
def _boxes(draw: st.DrawFn, size: int) -> list[float]:
    x, y = (draw(st.floats(0, size - 1)) for _ in range(2))
    return [x, y, min(size, x + draw(st.floats(0.5, size))), min(size, y + draw(st.floats(0.5, size)))]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_best_anchor_of_each_shape_is_the_best_of_all(data: st.DataObject) -> None:
    """The same IoU as with every anchor of the network, at sizes that are multiples of the strides or not."""
    size = data.draw(st.sampled_from([64, 96, 128, 200, 320]))
    spec = data.draw(st.sampled_from([find_spec("lite0"), find_spec("d0"), find_spec("d7")]))
    spec = dataclasses.replace(spec, aspects=data.draw(st.sampled_from([spec.aspects, aspect_factors((0.3, 4.0))])))
    boxes = np.array(data.draw(st.lists(_boxes(size), min_size=1, max_size=8)))
    every = pairwise_iou(torch.from_numpy(boxes), make_anchors(spec, (size, size)).double()).amax(1).numpy()
    np.testing.assert_allclose(best_anchor_iou(boxes, spec, size), every, atol=1e-5)


def test_boxes_are_letterboxed_and_ignored_regions_left_out() -> None:
    records = records_of([[0, 0, 10, 10], [10, 20, 30, 60]], size=(200, 400), ignored=1)
    scale = letterbox_scale((200, 400), (320, 320))[0]
    assert scale == 0.8
    np.testing.assert_allclose(boxes_at(records, 320), [[8, 16, 24, 48]])
    assert check_anchors([records_of([])], find_spec("lite0"), 320) is None


def check(boxes: list[list[float]], spec: ModelSpec | None = None, size: int = 320) -> AnchorReport:
    report = check_anchors([records_of(boxes, (size, size))], spec or find_spec("lite0"), size)
    assert report is not None
    return report


def grid(width: float, height: float, size: int = 320) -> list[list[float]]:
    return [
        [x, y, x + width, y + height]
        for x in np.arange(0, size - width, 17.3)
        for y in np.arange(0, size - height, 17.3)
    ]


def test_boxes_that_fit_need_no_suggestion() -> None:
    report = check(grid(48, 48))
    assert report.fit.recall == 1 and report.suggestions == [] and report.below_smallest == 0
    assert list(anchor_findings(report)) == []
    assert [(row.low, row.high, row.recall) for row in report.sizes] == [(32, 64, 1.0)]


@pytest.mark.parametrize("shape", [(9, 9), (100, 12), (10, 60)])
def test_what_is_suggested_reaches_what_it_says(shape: tuple[float, float]) -> None:
    """Small or elongated boxes: each suggestion, set as it says, gives the recall that it states, and more than now."""
    boxes = grid(*shape)
    report = check(boxes)
    assert report.fit.recall < 0.9 and report.suggestions
    for one in report.suggestions:
        spec = dataclasses.replace(find_spec("lite0"), anchor_scale=one.anchor_scale)
        if one.aspects != report.fit.aspects:
            spec = dataclasses.replace(spec, aspects=aspect_factors(one.aspects))
        scaled = np.array(boxes) * one.image_size / 320
        reached = float((best_anchor_iou(scaled, spec, one.image_size) >= 0.5).mean())
        assert reached == pytest.approx(one.recall, abs=1e-6)
        assert reached > report.fit.recall
        assert len(one.aspects) == 3
        assert options_of(one, report.fit).startswith("--")
    codes = [finding.code for finding in anchor_findings(report)]
    assert "anchor-recall" in codes
    assert ("box-small" in codes) == (min(shape) * max(shape) < 24**2)


def test_wide_boxes_get_wide_anchors() -> None:
    rng = np.random.default_rng(0)
    wide = [[x, y, x + 90, y + 90 / r] for x, y, r in zip(rng.uniform(0, 200, 60), rng.uniform(0, 250, 60),
                                                          rng.uniform(6, 8, 60), strict=True)]  # fmt: skip
    assert all(5.5 < aspect < 8.5 for aspect in typical_aspects(np.array(wide), 3))
    best = check(wide).suggestions[0]
    assert best.image_size == 320 and max(best.aspects) > 5
    assert best.recall > 0.9 > check(wide).fit.recall


def test_counts_of_small_boxes_are_of_all_boxes() -> None:
    """A sample is looked at, and its counts are scaled up."""
    report = check([[1, 1, 11, 11]] * 30_000 + [[50, 50, 50.5, 90]] * 30_000)
    assert report.boxes == 60_000
    assert report.below_smallest == 60_000
    assert report.vanishing == pytest.approx(30_000, rel=0.01)
    vanishing = next(one for one in anchor_findings(report) if one.code == "box-vanishing")
    assert vanishing.count == report.vanishing


def test_the_options_name_what_changes() -> None:
    fit = check(grid(9, 9)).fit
    other = dataclasses.replace(fit, image_size=512, anchor_scale=1.5, aspects=(0.5, 1.0, 2.2))
    assert options_of(other, fit) == "--image-size 512 --anchor-scale 1.5 --aspects 0.5,1,2.2"
    assert options_of(dataclasses.replace(fit, anchor_scale=2.0), fit) == "--anchor-scale 2"
