"""The reference's anchors at square, rectangular and fractional-stride sizes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from efficientdet.family import MODELS, ModelSpec, find_spec, level_sizes
from efficientdet.network.anchors import make_anchors

CASES: list[Any] = json.loads((Path(__file__).parent / "golden" / "postprocess.json").read_bytes())["anchors"]


def _spec(case: dict[str, Any]) -> ModelSpec:
    if case["model"].startswith("tf_"):
        return find_spec(case["model"])
    # efficientdetv2_dt is no model of this family; its anchors are those of the exact aspect ratios.
    aspects = tuple((math.sqrt(r), 1 / math.sqrt(r)) for r in case["aspect_ratios"])
    return dataclasses.replace(
        MODELS["d0"], anchor_scale=case["anchor_scale"], levels=tuple(case["levels"]), aspects=aspects
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['model']}-{case['height']}x{case['width']}")
def test_anchors(case: dict[str, Any], filler: ModuleType) -> None:
    spec, image_size = _spec(case), (case["height"], case["width"])
    assert [list(size) for size in level_sizes(image_size, spec.levels)] == case["sizes"]
    anchors = make_anchors(spec, image_size).numpy().astype(np.float64)
    assert len(anchors) == case["count"]
    # Goldens have 9 digits of float32 values: half a unit in the last place at 1000 px is 3e-5.
    assert np.allclose(anchors[:12], case["first"], rtol=1e-7, atol=1e-6)
    assert np.allclose(anchors[-4:], case["last"], rtol=1e-7, atol=1e-6)
    rows = filler.sample_indices(len(anchors), 12)
    assert np.allclose(anchors[rows], case["sampled"], rtol=1e-7, atol=1e-6)
    scale = np.array(case["column_abs_sums"])
    assert (np.abs(anchors.sum(0) - case["column_sums"]) <= 1e-7 * scale).all()
    assert (np.abs(np.abs(anchors).sum(0) - scale) <= 1e-7 * scale).all()
