"""The whole report."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from efficientdet.errors import MissingExtraError, SettingError
from efficientdet.research import report, scaling
from efficientdet.research.report import networks, write_report
from efficientdet.research.settings import ReportSettings


@pytest.mark.slow
def test_every_section_is_there_and_every_figure_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "TABLED_PHI", 2)
    monkeypatch.setattr(networks, "SCALES", ("d0",))
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
