"""The whole report, and the command that writes it."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import efficientdet.cli.report  # noqa: F401  (adds the command)
from efficientdet.cli.options import app
from efficientdet.errors import MissingExtraError, SettingError, UnknownNameError
from efficientdet.family import MODELS
from efficientdet.research.report import write_report


@pytest.mark.slow
def test_every_section_is_there_and_every_picture_it_names(tmp_path: Path) -> None:
    said: list[str] = []
    tiny = dataclasses.replace(MODELS["lite0"], image_size=128, width=16, depth=1)
    path = write_report(
        tmp_path / "report", has_timing=False, models=("d0", "lite0"), scales={"tiny": tiny}, largest_phi=2,
        say=said.append,
    )  # fmt: skip
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report" / "report.md"
    assert re.findall(r"^## (\d\. .+)$", text, re.MULTILINE) == [
        "1. The family", "2. Feature networks", "3. Fusions", "4. Compound scaling",
    ]  # fmt: skip
    assert "No times were measured." in text and "Latency on this machine" not in text
    named = set(re.findall(r"\]\(([^)]+)\)", text))
    there = {picture.name for picture in path.parent.iterdir()} - {"report.md"}
    assert named <= there and len(named) == 9
    assert {Path(name).with_suffix(".svg").name for name in named} | named == there
    assert len(said) == 4


def test_settings_are_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    for settings, error, says in (
        ({"latency": "gpu"}, UnknownNameError, "Known: cpu, cuda, none"),
        ({"latency_up_to": "d9"}, UnknownNameError, "unknown model 'd9'"),
        ({"models": ("d0", "x")}, UnknownNameError, "unknown model 'x'"),
        ({"largest_phi": 7}, SettingError, "largest_phi is 7"),
        ({"weights": "nowhere"}, UnknownNameError, "nowhere"),
    ):
        arguments: dict[str, Any] = {"has_timing": False, **settings}  # type: ignore[dict-item]
        with pytest.raises(error, match=says):
            write_report(out, **arguments)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib is not installed"):
        write_report(out)
    assert not out.exists()


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(out: Path, **settings: Any) -> Path:
        given.update(settings, out=out)
        return out / "report.md"

    monkeypatch.setattr("efficientdet.research.report.write_report", record)
    out = tmp_path / "r"
    options = ["--latency", "none", "--latency-up-to", "d1", "--weights", "people", "--no-timing"]
    result = CliRunner().invoke(app, ["report", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    say = given.pop("say")
    say("counting")
    assert given == {
        "out": out, "latency": "none", "latency_up_to": "d1", "weights": "people", "has_timing": False,
    }  # fmt: skip


def test_the_command_shows_an_example_and_wants_a_folder() -> None:
    runner = CliRunner()
    assert "efficientdet report --out report/" in runner.invoke(app, ["report", "--help"]).output
    assert runner.invoke(app, ["report"]).exit_code == 2
