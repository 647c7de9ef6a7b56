"""Feature networks beside Tables 4 and 5: how they are counted, and what the report says of the published ratios."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from efficientdet.family import MODELS, ModelSpec, compound_scaling
from efficientdet.network.count import count_parts
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.research.peers import TABLE_5
from efficientdet.research.report import networks
from efficientdet.research.report.networks import backbone_rows, equal_rows, networks_parts, retinanet_heads

TINY = dataclasses.replace(MODELS["lite0"], image_size=128, width=16, depth=1)


def test_rows_are_over_fpn_at_equal_width_and_depth() -> None:
    rows = {row["feature network"]: row for row in equal_rows(TINY)}
    assert list(rows) == list(TOPOLOGIES)
    assert (rows["fpn"]["params ratio"], rows["fpn"]["whole model"]) == ("1.00x", "1.00x / 1.00x")
    assert (rows["panet"]["nodes"], rows["fully-connected"]["edges"]) == (10, 25)
    fpn, panet = (
        count_parts(dataclasses.replace(TINY, feature_network=name, fusion="none"))["feature_network"]
        for name in ("fpn", "panet")
    )
    assert rows["panet"]["params ratio"] == f"{panet[0] / fpn[0]:.2f}x"
    assert rows["panet"]["GMAC ratio"] == f"{panet[1] / fpn[1]:.2f}x"


def test_the_published_rows_stand_beside_ours() -> None:
    rows = {row["feature network"]: row for row in equal_rows(TINY)}
    assert (rows["nas-fpn"]["Table 5: ratios"], rows["nas-fpn"]["Table 5: AP"]) == ("0.71x / 0.72x", 43.16)
    assert rows["bifpn"]["Table 5: AP"] == 43.94  # without weights, as it is counted
    assert rows["simplified-panet"]["Table 5: ratios"] is None


@pytest.mark.slow
def test_the_reading_of_table_5_that_the_report_tells_of() -> None:
    """The first D3's feature network alone, with two cells of one-way networks for one of the others."""
    spec, counts = compound_scaling(3, "arxiv-v1"), []
    for row in TABLE_5:
        depth = spec.depth * (2 if row.feature_network in ("fpn", "fully-connected") else 1)
        own = dataclasses.replace(spec, feature_network=row.feature_network, fusion=row.fusion, depth=depth)
        counts.append(count_parts(own)["feature_network"])
    ratios = [(own[0] / counts[0][0], own[1] / counts[0][1]) for own in counts]
    assert [f"{a:.2f} / {b:.2f}" for a, b in ratios] == [
        "1.00 / 1.00", "1.00 / 1.00", "0.74 / 0.72", "1.24 / 1.18", "0.88 / 0.67", "0.88 / 0.67",
    ]  # fmt: skip
    logs = [
        math.log(ours / published)
        for row, pair in zip(TABLE_5[1:], ratios[1:], strict=True)
        for ours, published in zip(pair, (row.parameters_ratio, row.multiply_adds_ratio), strict=True)
    ]
    assert math.sqrt(sum(value**2 for value in logs) / len(logs)) == pytest.approx(0.018, abs=5e-4)


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
    assert [row["GMAC"] for row in rows] == [96.9, 69.7, 24.0]
    assert rows[0]["params M"] == pytest.approx(rows[0]["published M"], abs=1)
    assert rows[2]["params M"] == pytest.approx(rows[2]["published M"], abs=0.5)


def test_the_section_draws_the_six_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "backbone_rows", lambda: [{"row": "left out here, for time"}])
    monkeypatch.setattr(networks, "MODELS", {"d0": TINY})
    monkeypatch.setattr(networks, "SCALES", ("d0",))
    parts = networks_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"network_{name}.svg" for name in TOPOLOGIES}
    assert all(f"![{name}](network_{name}.svg)" in parts["drawings"] for name in TOPOLOGIES)
    assert "d0: 1 cells of 16 channels, image size 128" in parts["equal"]
