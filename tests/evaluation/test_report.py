"""The report: every number of the evaluation as plain JSON, and as markdown that outside text cannot break."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from efficientdet.data.records import Records
from efficientdet.errors import SettingError
from efficientdet.evaluation.coco_ap import Metrics, metrics_of
from efficientdet.evaluation.matching import match, read_table
from efficientdet.evaluation.mistakes import KINDS
from efficientdet.evaluation.report import summarize, summary_table, to_markdown, write_report

pytest.importorskip("faster_coco_eval")

BOX, FAR = [0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 30.0, 30.0]


def metrics(images: int = 6, name: str = "cat") -> Metrics:
    """Each image has a cat, found but in the last one, where a dog is seen far away."""
    truth: dict[str, Any] = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": 0, "name": name}, {"id": 1, "name": "dog"}],
        "annotations": [{"id": i + 1, "image_id": i, "category_id": 0, "bbox": BOX} for i in range(images)],
    }
    found = [{"image_id": i, "category_id": 0, "bbox": BOX, "score": 0.9 - i / 100} for i in range(images - 1)]
    found.append({"image_id": images - 1, "category_id": 1, "bbox": FAR, "score": 0.95})
    table = read_table(truth, found)
    return dataclasses.replace(metrics_of(table), matches=match(table))


def test_all_numbers_agree() -> None:
    measured = metrics()
    report = summarize(measured)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["metrics"] == measured.to_dict() and "matches" not in report["metrics"]
    assert [row["ap"] for row in report["classes"]] == [pytest.approx(measured.per_class["cat"]), None]
    assert {kind: row["count"] for kind, row in report["mistakes"].items()} == dict.fromkeys(KINDS, 0) | {
        "background": 1, "missed": 1,
    }  # fmt: skip
    assert report["mistakes"]["missed"]["ap50_gain"] > 0
    counts = report["confusion"]["counts"]
    assert [sum(row) for row in counts[:2]] == [6, 0]
    low, high = report["intervals"]["ap50"]
    assert low <= measured.ap50 <= high
    assert set(report["definitions"]) >= {"ap", "interval", "threshold", "mistakes"}


def test_a_training_run_has_no_matches() -> None:
    with pytest.raises(SettingError, match="hold no matches"):
        summarize(dataclasses.replace(metrics(), matches=None))


def test_one_image_has_no_threshold() -> None:
    report = summarize(metrics(images=1))
    assert report["threshold"] is None
    assert "Score threshold" not in to_markdown(report)


def images_of(folder: Path, count: int) -> Records:
    """The images of `metrics`, as files."""
    images = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.new("RGB", (120, 100), (40 * i % 255, 120, 90)).save(path)
        row = {
            "image_id": i, "path": path, "width": 120, "height": 100, "boxes_xyxy": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int64), "is_crowd": np.zeros(0, np.bool_), "areas": np.zeros(0, np.float32),
            "annotation_ids": [],
        }  # fmt: skip
        images.append(SimpleNamespace(**row))
    return SimpleNamespace(images=images, source=folder)  # type: ignore[return-value]


def test_files(tmp_path: Path) -> None:
    measured = metrics(name="a|b <script> [c](d)")
    report, records = summarize(measured), images_of(tmp_path, 6)
    write_report(tmp_path / "new" / "report.json", report, measured, records)
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report
    write_report(tmp_path / "report.md", report, measured, records)
    text = (tmp_path / "report.md").read_text()
    assert "| AP50 | 0.8" in text and "<script>" not in text and "a\\|b" in text
    with pytest.raises(SettingError, match=r"ends in \.json, \.md or \.html"):
        write_report(tmp_path / "report.pdf", report, measured, records)


def test_page(tmp_path: Path, look_at: Callable[..., list[str]]) -> None:
    measured = metrics(name="a <script>alert(1)</script>")
    records = images_of(tmp_path, 6)
    write_report(tmp_path / "report.html", summarize(measured), measured, records)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text and "alert(1)" in text
    assert text.count("<figure") == 2  # the dog seen on background, and the cat that was missed
    assert "an object without a label?" in text
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            assert look_at(tmp_path / "report.html", width, scheme) == []


def test_page_without_its_images(tmp_path: Path) -> None:
    measured = metrics()
    records = images_of(tmp_path, 6)
    for image in records.images:
        image.path.unlink()
    write_report(tmp_path / "report.html", summarize(measured), measured, records)
    assert "cannot be read" in (tmp_path / "report.html").read_text()


def test_table() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(summarize(metrics())))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "background" in shown and "95 % interval of AP50" in shown and "score threshold" in shown
