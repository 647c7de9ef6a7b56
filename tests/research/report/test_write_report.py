"""The whole report."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from efficientdet.errors import MissingExtraError, SettingError, UnknownNameError
from efficientdet.research import report
from efficientdet.research.report import networks, scaling, write_report
from efficientdet.research.settings import ReportSettings


@pytest.mark.slow
def test_every_section_is_there_and_every_figure_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LARGEST_PHI", 2)
    monkeypatch.setattr(networks, "SCALES", ("d0",))
    said: list[str] = []
    path = write_report(tmp_path / "report", ReportSettings(timing=False), say=said.append)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report" / "report.md"
    assert re.findall(r"^## (\d\. .+)$", text, re.MULTILINE) == [
        "1. The family", "2. Feature networks", "3. Fusions", "4. Compound scaling",
    ]  # fmt: skip
    assert "Times: not measured." in text and "### Latency" not in text and "### Speed" not in text
    named = set(re.findall(r"\]\(([^)]+)\)", text))
    assert named == {figure.name for figure in path.parent.iterdir()} - {"report.md"} and len(named) == 9
    assert len(said) == 4


def test_models_up_to_the_largest_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    for section in ("networks_section", "fusions_section", "scaling_section"):
        monkeypatch.setattr(report, section, lambda *arguments: "")
    monkeypatch.setattr(report, "family_section", lambda folder, latencies: given.update(latencies) or "")
    monkeypatch.setattr(report, "forward_ms", lambda spec, device: [1.0])
    text = write_report(tmp_path, ReportSettings(largest_timed="lite0")).read_text(encoding="utf-8")
    assert given == {"lite0": [1.0]}
    assert re.search(r"Times: measured on .+; torch \S+, threads: \d+\.", text)


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    with pytest.raises(UnknownNameError, match="nowhere"):
        write_report(out, ReportSettings(weights="nowhere"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SettingError, match="PyTorch finds no GPU"):
        write_report(out, ReportSettings(device="cuda"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib is not installed"):
        write_report(out)
    assert not out.exists()
