"""Trials under one budget, which go on where they were stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efficientdet.errors import EfficientDetError, SettingError, UnknownNameError
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.research import ablation as module
from efficientdet.research.ablation import ablate, as_markdown, plan_trials, shown_rows
from efficientdet.research.settings import AblationSettings

BUDGET: dict[str, Any] = {
    "epochs": 1, "batch_size": 3, "precision": "fp32", "device": "cpu", "workers": 0, "optimizer": "sgd",
}  # fmt: skip


# ---- the plan
def test_networks_with_the_fast_fusion_and_fusions_in_bifpn() -> None:
    trials = plan_trials(AblationSettings(seeds=2))
    pairs = [trial.pair for trial in trials if trial.seed == 1]
    assert len(pairs) == len(set(pairs)) == 9 and len(trials) == 18
    assert {network for network, fusion in pairs if fusion == "fast"} == set(TOPOLOGIES)
    assert {fusion for network, fusion in pairs if network == "bifpn"} == set(FUSIONS)
    assert [trial.seed for trial in trials] == [0] * 9 + [1] * 9  # a stopped ablation has whole seeds


def test_every_pair() -> None:
    assert len(plan_trials(AblationSettings(every_pair=True))) == 6 * 4 * 3


def test_without_bifpn_the_first_named_stands_for_it() -> None:
    trials = plan_trials(AblationSettings(("fpn", "panet"), ("none", "softmax"), seeds=1))
    assert [trial.name for trial in trials] == ["fpn-none-seed0", "panet-none-seed0", "fpn-softmax-seed0"]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (
            {"feature_networks": ("bifpm",)},
            UnknownNameError,
            "unknown feature network 'bifpm'; did you mean 'bifpn'.*panet",
        ),
        ({"fusions": ("fats",)}, UnknownNameError, "unknown fusion 'fats'; did you mean 'fast'.*softmax"),
        ({"seeds": 0}, SettingError, "seeds is 0; it must be at least 1"),
        ({"seed": 3}, SettingError, "seed is decided by each trial; choose feature_networks, fusions and seeds"),
        ({"epoch": 3}, SettingError, "unknown setting 'epoch'; did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_planned(settings: dict[str, Any], error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        ablate("lite0", tmp_path, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


# ---- the table
def row(ap: list[float], network: str = "bifpn", difference: float = 0.0) -> dict[str, Any]:
    deviation = abs(ap[0] - ap[1]) / 2**0.5 if len(ap) > 1 else None
    return {
        "feature_network": network, "fusion": "fast", "ap": sum(ap) / len(ap), "ap_deviation": deviation,
        "is_reference": network == "bifpn",
        "ap_by_seed": ap, "ap50": 0.5, "ap_difference": difference, "parameters": 3_200_000,
        "multiply_adds": 900_000_000, "images_per_second": 20.0,
    }  # fmt: skip


def test_the_table_says_what_the_noise_allows() -> None:
    # Deviations of 0.01 each: two seeds a row, so two standard errors of a difference are 0.02.
    rows = [row([0.30, 0.3141421]), row([0.25, 0.2641421], "fpn", -0.05), row([0.29, 0.3041421], "panet", -0.01)]
    text = as_markdown(rows, {"model": "lite0", "epochs": 3})
    assert "deviation of 0.010 AP" in text and "above 0.020 (two standard errors). Above it: fpn with fast." in text
    assert "2 seeds under one budget (model lite0, epochs 3)" in text and "| to bifpn, fast |" in text
    assert "| fpn | fast | 0.257 ± 0.010 | 0.250, 0.264 | -0.050 |" in text


def test_a_table_without_bifpn_names_what_it_compares_with() -> None:
    rows = [row([0.3, 0.31], "fpn"), row([0.3, 0.32], "panet")]
    rows[0]["is_reference"] = True
    assert list(shown_rows(rows)[1])[4] == "to fpn, fast"
    assert "Above it: none." in as_markdown(rows, {})


def test_one_seed_says_that_it_knows_nothing_of_noise() -> None:
    text = as_markdown([row([0.3])], {})
    assert "With one seed each, the noise is unknown" in text and "±" not in text.splitlines()[4]


# ---- the trials
@pytest.fixture(scope="module")
def data(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = shapes.write_shapes(tmp_path_factory.mktemp("set") / "shapes", {"train": 4, "val": 2})
    return folder


def test_goes_on_where_it_was_stopped(
    shapes: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "time_in_turns", lambda works, device, rounds: {name: [9.0, 20.0, 21.0] for name in works}
    )
    said: list[str] = []
    choice: dict[str, Any] = {"feature_networks": ("bifpn", "fpn"), "fusions": ("fast",), "seeds": 1, **BUDGET}
    rows = ablate(shapes.TINY, data, tmp_path / "out", say=said.append, **choice)
    assert [(row["feature_network"], row["fusion"]) for row in rows] == [("bifpn", "fast"), ("fpn", "fast")]
    assert rows[0]["ap_difference"] == 0 and rows[0]["ap_deviation"] is None
    assert rows[0]["parameters"] > rows[1]["parameters"] and rows[0]["images_per_second"] == 50
    report = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert report["rows"] == rows
    assert report["budget"] == {
        "model": "lite0", "data": "shapes", "epochs": 1, "batch_size": 3, "precision": "fp32", "device": "cpu",
        "optimizer": "sgd",
    }  # fmt: skip
    assert "| fpn | fast |" in (tmp_path / "out" / "ablation.md").read_text()

    shutil.rmtree(tmp_path / "out" / "fpn-fast-seed0")
    ablate(shapes.TINY, data, tmp_path / "out", say=said.append, **choice)
    assert said[-2] == "2 trials, 1 have ended already"
    assert said[-1].startswith("fpn-fast-seed0: AP ") and said[-1].endswith("; about 0 min left")
    with pytest.raises(SettingError, match="started with other settings: epochs was 1, now 2$"):
        ablate(shapes.TINY, data, tmp_path / "out", **{**choice, "epochs": 2})


def test_one_that_fails_does_not_fell_the_others(shapes: ModuleType, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    choice: dict[str, Any] = {"feature_networks": ("bifpn", "fpn"), "fusions": ("fast",), "seeds": 1, **BUDGET}
    blocked = out / "bifpn-fast-seed0"
    blocked.mkdir(parents=True)
    (blocked / "config.json").write_text("{")  # a run that cannot be resumed
    with pytest.raises(EfficientDetError, match="1 of 2 trials failed:\n  bifpn-fast-seed0: "):
        ablate(shapes.TINY, data, out, **choice)
    assert (out / "fpn-fast-seed0" / "report.json").is_file()
