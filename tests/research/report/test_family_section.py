"""The family's section: our counts, the published figures beside them, and latency where it was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.family import MODELS
from efficientdet.network.count import count
from efficientdet.research.report.family_section import ap_picture, family_rows, family_section, peer_rows
from efficientdet.research.report.timing import check_device, machine, measure
from efficientdet.research.spread import Spread

SPECS = [MODELS["d0"], MODELS["lite0"]]


def test_a_row_has_our_count_beside_the_published() -> None:
    d0, lite0 = family_rows(SPECS)
    assert (d0["params M"], d0["published M"], d0["GMAC"], d0["published GMAC"]) == ("3.880", "3.880", 2.49, 2.55)
    assert lite0["published AP"] == 26.41


def test_peers_are_over_our_count_and_only_of_the_models_given() -> None:
    (yolo,) = peer_rows(SPECS)
    assert yolo["peer"] == "YOLOv3"
    assert yolo["GMAC over ours"] == f"{71e9 / count(MODELS['d0'])[1]:.0f}x" == yolo["printed GMAC ratio"] == "28x"
    assert yolo["params over ours"] is None


def test_ratios_that_the_paper_s_own_figures_do_not_give_are_pointed_out(tmp_path: Path) -> None:
    text = family_section(tmp_path, [MODELS["d1"]], None, "", "d2")
    assert "RetinaNet R50 @640, parameters: 34M over 6.63M is 5.1x; printed is 6.7x." in text
    assert text.count("printed is") == 1
    assert "25 : 16 ms Titan V" in text


def test_the_picture_has_every_peer_whose_cost_is_published() -> None:
    labels = {text.get_text() for text in ap_picture(SPECS).axes[0].texts}
    assert {"d0", "lite0", "YOLOv3", "R50 @640", "X101-FPN", "@1280, 384 ch", "+ AA @1536"} <= labels
    assert len(labels) == 12  # two models, ten of eleven peers


def test_latency_says_where_what_was_left_out_and_how_proportional(tmp_path: Path) -> None:
    specs = [MODELS[name] for name in ("d0", "d1", "lite0")]
    gmac = {spec.name: count(spec)[1] / 1e9 for spec in specs}
    times = {"d0": Spread(10 * gmac["d0"], 20, 30), "d1": Spread(15 * gmac["d1"], 80, 99)}
    text = family_section(tmp_path, specs, times, "A chip, 1 thread", "d1")
    assert "A chip, 1 thread. One forward pass" in text
    assert "| d1 | 6.0 | 90.05 (80-99) | 15.0 | 1.5 |" in text
    assert "| lite0 | 0.97 | not measured | - | - |" in text
    assert "beyond 30% of proportional to d0: d1 (1.50)." in text
    assert (tmp_path / "latency_over_multiply_adds.svg").is_file()


def test_within_the_bound_is_said_too(tmp_path: Path) -> None:
    times = {spec.name: Spread(count(spec)[1] * 1e-8, 1, 2) for spec in SPECS}
    assert "No other model of d0's series was measured." in family_section(tmp_path, SPECS, times, "x", "d0")
    times["d1"] = Spread(count(MODELS["d1"])[1] * 1.29e-8, 1, 2)
    text = family_section(tmp_path, [*SPECS, MODELS["d1"]], times, "x", "d1")
    assert "Of d1, each is within 30% of proportional to d0." in text


def test_without_latency_there_is_none(tmp_path: Path) -> None:
    assert "Latency" not in family_section(tmp_path, SPECS, None, "", "d2")
    assert not (tmp_path / "latency_over_multiply_adds.png").exists()


def test_models_up_to_the_largest_are_measured() -> None:
    found = measure([MODELS["lite0"], MODELS["d0"]], "cpu", MODELS["lite0"])
    assert list(found) == ["lite0"]
    assert 0 < found["lite0"].low <= found["lite0"].median <= found["lite0"].high


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)
    assert str(Spread(1234.567, 0.123456, 20000)) == "1235 (0.1235-20000)"


def test_the_machine_says_threads_and_version_and_whether_it_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.01, 0.0, 0.0))
    assert re.search(r", \d+ threads?, torch [\d.]+[^;]*$", machine("cpu"))
    monkeypatch.setattr("os.getloadavg", lambda: (500.0, 0.0, 0.0))
    assert machine("cpu").endswith("; machine busy (load 500.0), times are rough")


def test_devices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device("none")
    with pytest.raises(UnknownNameError, match="Known: cpu, cuda, none"):
        check_device("gpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SettingError, match="torch finds no GPU"):
        check_device("cuda")
