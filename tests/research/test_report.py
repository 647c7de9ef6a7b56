"""The whole report."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from torch import nn

from efficientdet.errors import MissingExtraError, SettingError
from efficientdet.family import MODELS, PUBLISHED, ModelSpec, compound_scaling
from efficientdet.network.count import count, count_parts
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.research import report, scaling
from efficientdet.research.peers import TABLE_5
from efficientdet.research.report import (
    ap_figure,
    backbone_rows,
    equal_rows,
    family_parts,
    fusion_times,
    fusions_parts,
    make_network,
    networks_parts,
    peer_rows,
    retinanet_heads,
    write_report,
)
from efficientdet.research.settings import ReportSettings


@pytest.mark.slow
def test_every_section_is_there_and_every_figure_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "TABLED_PHI", 2)
    monkeypatch.setattr(report, "SCALES", ("d0",))
    said: list[str] = []
    path = write_report(tmp_path / "report", ReportSettings(timing=False), say=said.append)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report" / "report.md"
    assert re.findall(r"^## (\d\. .+)$", text, re.MULTILINE) == [
        "1. The family", "2. Feature networks", "3. Fusions", "4. Compound scaling",
    ]  # fmt: skip
    assert "Times: not measured." in text and "### Speed\n\nNot measured.\n" in text
    assert not re.search(r"[{}]", text)
    named = set(re.findall(r"\]\(([^)]+)\)", text))
    assert named == {figure.name for figure in path.parent.iterdir()} - {"report.md"} and len(named) == 9
    assert len(said) == 4


def test_the_machine_is_named_where_something_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = re.findall(r"{(\w+)}", Path(report.__file__).with_name("report.md").read_text(encoding="utf-8"))
    for section in ("family", "networks", "scaling"):
        monkeypatch.setattr(report, f"{section}_parts", lambda folder: dict.fromkeys(names[3:], ""))
    given: list[str | None] = []
    monkeypatch.setattr(report, "fusions_parts", lambda device: given.append(device) or {})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"Times: measured on .+; torch \S+, threads: \d+\.", text) and given == ["cpu"]


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SettingError, match="PyTorch finds no GPU"):
        write_report(out, ReportSettings(device="cuda"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib is not installed"):
        write_report(out)
    assert not out.exists()


pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def small_models_count_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting d3 to d7x takes a minute; their published costs are within 2% of the counted ones."""
    small = {"d0", "d1", "lite0", "lite1"}
    monkeypatch.setattr(
        report,
        "count",
        lambda spec: count(spec) if spec.name in small else tuple(map(int, PUBLISHED[spec.name])),
    )
    monkeypatch.setattr(report, "family_rows", lambda: [{"name": "d0"}])


def labels(figure: Figure) -> list[Annotation]:
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


def assert_readable(figure: Figure) -> None:
    """No label covers another or a marker, or leaves the figure."""
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in labels(figure)]
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)
    markers = [point for line in axes.lines for point in axes.transData.transform(line.get_xydata())]
    assert not any(box.contains(x, y) for box in boxes for x, y in markers)


def test_peers_are_over_our_count() -> None:
    rows = {row["peer"]: row for row in peer_rows()}
    assert len(rows) == 11
    yolo, retinanet = rows["YOLOv3"], rows["RetinaNet R50 @640"]
    assert yolo["GMAC over ours (printed)"] == f"{71e9 / count(MODELS['d0'])[1]:.0f}x (28x)" == "28x (28x)"
    assert yolo["params over ours (printed)"] is None and yolo["time"] is None
    assert (retinanet["params over ours (printed)"], retinanet["time"]) == ("5.1x (6.7x)", "25 : 16 ms Titan V")


def test_the_figure_has_every_model_and_every_peer_whose_cost_is_published() -> None:
    figure = ap_figure()
    texts = {label.get_text() for label in labels(figure)}
    assert set(MODELS) | {"YOLOv3", "R50 @640", "X101-FPN", "@1280, 384 ch", "+ AA @1536"} <= texts
    assert len(texts) == len(MODELS) + 10  # of eleven peers
    assert_readable(figure)


def test_the_section_has_its_tables_and_its_figure(tmp_path: Path) -> None:
    parts = family_parts(tmp_path)
    assert parts["family"].startswith("| name |") and "| YOLOv3 |" in parts["peers"]
    assert {path.name for path in tmp_path.iterdir()} == {"ap_over_multiply_adds.png"}


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
    monkeypatch.setattr(report, "backbone_rows", lambda: [{"row": "left out here, for time"}])
    monkeypatch.setattr(report, "MODELS", {"d0": TINY})
    monkeypatch.setattr(report, "SCALES", ("d0",))
    parts = networks_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"network_{name}.svg" for name in TOPOLOGIES}
    assert all(f"![{name}](network_{name}.svg)" in parts["drawings"] for name in TOPOLOGIES)
    assert "d0: 1 cells of 16 channels, image size 128" in parts["equal"]


TINY_CELLS = dataclasses.replace(MODELS["lite0"], image_size=128, width=16, depth=2)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SPEC", TINY_CELLS)


def test_without_timing_nothing_is_measured() -> None:
    assert fusions_parts(None) == {"speed": "Not measured.\n"}


def test_each_fusion_is_timed_in_every_round() -> None:
    found = fusion_times(TINY_CELLS, "cpu", rounds=3)
    assert {kind: len(values) for kind, values in found.items()} == dict.fromkeys(FUSIONS, 3)


def test_speeds_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fast": [1.0, 2.0, 4.0], "softmax": [1.5, 3.0, 8.0], "unbounded": [1.0] * 3, "none": [0.5] * 3}
    monkeypatch.setattr(report, "fusion_times", lambda spec, device: times)
    text = fusions_parts("cpu")["speed"]
    assert "| softmax | 3.0 (1.5-8.0) | 1.50 (1.50-2.00) |" in text and "takes 1.50 times as long" in text
    assert "1.26-1.31 times" in text


def test_networks_differ_in_the_fusion_alone() -> None:
    state = torch.get_rng_state()
    built = {kind: make_network(TINY_CELLS, kind) for kind in FUSIONS}
    assert torch.equal(torch.get_rng_state(), state)
    first, features = built["none"][0].state_dict(), built["none"][1]
    for network, others in built.values():
        other = {name: value for name, value in network.state_dict().items() if not name.endswith("fuse.weights")}
        assert other.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in other.items())
        assert all(torch.equal(a, b) for a, b in zip(features, others, strict=True))
    assert [tuple(x.shape[2:]) for x in features] == [(16, 16), (8, 8), (4, 4)]
