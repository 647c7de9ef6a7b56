"""The page of a check, looked at in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientdet.data.quality.anchors import check_anchors
from efficientdet.data.quality.findings import RULES, Finding
from efficientdet.data.quality.report import MOST_FIGURES, MOST_LINES, DataReport, SplitSummary, write_page
from efficientdet.data.read_split import read_split
from efficientdet.family import find_spec

HOSTILE = "<script>alert(1)</script> " + "x" * 120


@pytest.fixture
def report(tmp_path: Path, write: Callable[..., Path], written: Any) -> DataReport:
    """Findings of every code, with long and hostile names, on images of odd shapes."""
    classes = ("a class with quite a long name, as people have them", HOSTILE)
    images = [
        written("a.png", [(1, [10, 10, 6, 6]), (2, [50, 20, 60, 60])]),
        written(f"{'long-' * 30}.png", [(1, [10, 10, 40, 40])], 900, 60),
        written("tall.png", [(1, [10, 10, 5, 40])], 60, 900),
    ]
    write(tmp_path / "data", "train", images, classes)
    records = read_split(tmp_path / "data", "train")
    findings = [
        Finding(
            code, f"something about '{HOSTILE}'", "train", str(record.path), record.image_id, (1, 2),
            ((10.0, 10.0, 16.0, 16.0), (-30.0, 5.0, 20.0, 30.0)), other_file=str(records.images[0].path),
        )
        for code in RULES
        for record in list(records.images) * 3
    ]  # fmt: skip
    findings += [Finding("box-tiny", "one of many", "train", "gone.png", f"{n}") for n in range(MOST_LINES + 5)]
    anchors = check_anchors([records], find_spec("lite0"), 320)
    return DataReport(str(tmp_path / "data"), "lite0", {"train": SplitSummary.of(records)}, anchors, findings, HOSTILE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_has_no_error_and_cuts_no_text(
    report: DataReport, look_at: Callable[..., list[str]], tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "check.html"
    path.write_text(write_page(report), encoding="utf-8")
    assert look_at(path, width, scheme) == []


def test_what_the_browser_is_asked_can_fail(look_at: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!DOCTYPE html><title>x</title>"
        "<p style='width:40px;overflow:hidden;white-space:nowrap'>text that is cut off</p>"
        "<p style='white-space:nowrap'>"
        + "wide " * 200
        + "</p><img src='missing.png'><script>throw Error('no')</script>"
    )
    problems = " ".join(look_at(path, 360))
    for part in ("cut off: text that is cut", "beyond the screen: wide", "wider than the screen", "missing.png", "no",
                 "image-alt", "html-has-lang"):  # fmt: skip
        assert part in problems


def test_the_page_is_bounded_and_escaped(report: DataReport) -> None:
    page = write_page(report)
    assert "<script>" not in page
    assert page.count("<figure") <= MOST_FIGURES * len(RULES)
    assert len(page) < 4_000_000
    for rule in RULES.values():
        assert rule.title.replace("'", "&#x27;") in page
    assert "And 14 more; --json lists all." in page


def test_a_sound_dataset_has_a_page_too(tmp_path: Path, write: Callable[..., Path], written: Any) -> None:
    write(tmp_path, "train", [written("a.png", [(1, [50, 20, 60, 60])])])
    records = read_split(tmp_path, "train")
    report = DataReport("data", "lite0", {"train": SplitSummary.of(records)}, None)
    assert "Nothing was found." in write_page(report)
    assert report.summary() == "data: nothing found"


def test_the_report_is_plain_and_says_what_fails(report: DataReport) -> None:
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["counts"] == {name: count for name, count in report.counts.items()}
    assert content["anchors"]["suggestions"] == [] or content["anchors"]["suggestions"][0]["options"].startswith("--")
    assert content["splits"]["train"]["images"] == 3
    notes = DataReport("x", "lite0", {}, None, [Finding("images-empty", "x")])
    assert [notes.fails(level) for level in ("error", "warning", "note")] == [False, False, True]
    assert [report.fails(level) for level in ("error", "warning", "note")] == [True, True, True]
