"""Feature networks beside Tables 5 and 4: how the readings are counted, and which comes nearest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from efficientdet.family import MODELS, ModelSpec
from efficientdet.network.count import count_parts
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.research.peers import TABLE_5
from efficientdet.research.report import networks
from efficientdet.research.report.networks import (
    SCALES,
    Reading,
    backbone_rows,
    equal_rows,
    networks_section,
    read_table_5,
    retinanet_heads,
)

TINY = dataclasses.replace(MODELS["lite0"], image_size=128, width=16, depth=1)


def test_two_one_way_cells_cost_what_a_panet_cell_costs() -> None:
    """Ten convolutions on the same levels and the same laterals: 1.0x and 1.0x, exactly."""
    alone, _, whole = read_table_5("tiny", TINY, True, True)
    assert alone.scope == "feature network alone" and whole.scope == "whole model"
    assert alone.ratios[0] == alone.ratios[1] == (1.0, 1.0)
    assert alone.ratios[4] == pytest.approx(alone.ratios[5], rel=0.01)  # weights are a handful of numbers
    assert abs(whole.ratios[4][1] - 1) < abs(alone.ratios[4][1] - 1)  # the backbone drowns it


def test_with_as_many_cells_panet_costs_more_than_fpn() -> None:
    alone = read_table_5("tiny", TINY, True, False)[0]
    assert alone.ratios[1][1] > 1.2


def test_the_distance_is_zero_at_the_published_ratios_and_grows_off_them() -> None:
    published = [(row.parameters_ratio, row.multiply_adds_ratio) for row in TABLE_5]
    assert Reading("", True, True, "", published).distance() == 0
    ten_percent = [(a * 1.1, b * 1.1) for a, b in published]
    assert Reading("", True, True, "", ten_percent).distance() == pytest.approx(0.0953, abs=1e-4)  # log 1.1


@pytest.mark.slow
def test_the_nearest_reading_is_the_first_d3_s_feature_network_alone() -> None:
    nearest = networks.all_readings(SCALES)[0]
    assert nearest[:4] == ("D3 as in arXiv v1 (5 cells)", True, True, "feature network alone")
    assert nearest.distance() < 0.02
    assert [round(parameters, 2) for parameters, _ in nearest.ratios] == [1.0, 1.0, 0.74, 1.24, 0.88, 0.88]


def test_rows_are_over_fpn_at_equal_width_and_depth() -> None:
    rows = {row["feature network"]: row for row in equal_rows(TINY)}
    assert list(rows) == list(TOPOLOGIES)
    assert rows["fpn"]["params over FPN"] == rows["fpn"]["whole model: GMAC"] == "1.00x"
    assert (rows["panet"]["nodes a cell"], rows["fully-connected"]["edges a cell"]) == (10, 25)
    fpn, panet = (
        count_parts(dataclasses.replace(TINY, feature_network=name, fusion="none"))["feature_network"]
        for name in ("fpn", "panet")
    )
    assert rows["panet"]["params over FPN"] == f"{panet[0] / fpn[0]:.2f}x"
    assert rows["panet"]["GMAC over FPN"] == f"{panet[1] / fpn[1]:.2f}x"


def test_retinanet_s_heads_are_counted_as_torch_counts_them() -> None:
    spec = ModelSpec("r", "b0", 128, 16, 1, 4)
    with torch.device("meta"):
        heads = [
            nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)), nn.Conv2d(16, 9 * k, 3, padding=1))
            for k in (7, 4)
        ]
    positions = 16**2 + 8**2 + 4**2 + 2**2 + 1
    weights = sum(p.numel() for head in heads for p in head.parameters() if p.ndim == 4)
    parameters = sum(p.numel() for head in heads for p in head.parameters())
    assert retinanet_heads(spec, depth=2, num_classes=7) == (parameters, weights * positions)


@pytest.mark.slow
def test_table_4_is_built_as_near_as_said() -> None:
    rows = backbone_rows()
    assert [row["GMAC"] for row in rows] == [96.9, 46.6, 69.7, 19.4, 24.0, 12.2, 24.6]
    assert rows[0]["params M"] == pytest.approx(rows[0]["published M"], abs=1)
    assert rows[4]["params M"] == pytest.approx(rows[4]["published M"], abs=0.5)


@pytest.mark.slow
def test_the_section_draws_the_six_networks_and_prints_the_published_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "backbone_rows", lambda: [{"row": "left out here, for time"}])
    text = networks_section(tmp_path, {"tiny": TINY})
    assert {path.stem for path in tmp_path.iterdir()} == {f"network_{name}" for name in TOPOLOGIES}
    assert "| **published, Table 5** |" in text
    assert "0.71 / 0.72 | 1.24 / 1.21 | 0.88 / 0.67 | 0.88 / 0.68" in text
    assert "Of 12 readings" in text and "**Nearest: tiny," in text
