"""The report: every number of the evaluation as plain JSON, in markdown that outside text cannot break, on a page."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientdet.errors import DataError, SettingError
from efficientdet.evaluation.mistakes import KINDS
from efficientdet.evaluation.numbers import NUMBERS, tables, to_markdown
from efficientdet.evaluation.report import summarize, write_report
from efficientdet.evaluation.report_page import explain_command
from efficientdet.evaluation.settings import ThresholdSettings

HEADLINE = ("ap", "ap50", "ap75", "voc_ap50", "precision", "recall", "f1", "mean_iou", "calibration_error")
SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
Make = Callable[..., Any]


def check_schema(report: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is missing (dependency group dev)")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report, schema, jsonschema.Draft202012Validator)


def test_all_numbers_agree(evaluation: Make) -> None:
    measured = evaluation().metrics
    report = summarize(measured)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    numbers = report["numbers"]
    assert list(numbers) == list(NUMBERS)
    for name in ("ap", "ap50", "ar100", "images_per_second"):
        assert numbers[name]["value"] == getattr(measured, name)
    assert numbers["ap_small"]["value"] is None  # there are none
    by_name = {row["name"]: row for row in report["classes"]}
    assert by_name["cat"]["ap"] == pytest.approx(measured.per_class["cat"]) and by_name["dog"]["ap"] is None
    assert {kind: row["count"] for kind, row in report["mistakes"].items()} == dict.fromkeys(KINDS, 0) | {
        "classification": 1, "background": 1, "missed": 1,
    }  # fmt: skip
    assert report["mistakes"]["missed"]["ap50_gain"] > 0
    counts = np.array(report["confusion"]["counts"])
    assert counts[report["confusion"]["names"].index("cat")].sum() == 6 and counts[:2].sum() == 6
    hits = counts.trace()
    found = numbers["precision"]["value"], numbers["recall"]["value"]
    assert all(0 <= value <= 1 for value in found) and hits == 4


def test_headline_numbers_have_intervals_and_every_number_a_definition(evaluation: Make) -> None:
    numbers = summarize(evaluation(images=40).metrics)["numbers"]
    for name in HEADLINE:
        low, high = numbers[name]["interval"]
        assert low <= numbers[name]["value"] <= high and low < high or name == "mean_iou", name
    assert all(len(one["definition"]) > 20 and one["label"] for one in numbers.values())
    assert summarize(evaluation(images=40).metrics)["numbers"] == numbers  # the resampling is repeatable


def test_numbers_at_the_threshold_are_those_of_the_unseen_half(evaluation: Make) -> None:
    report = summarize(evaluation(images=40).metrics, ThresholdSettings(by_class=True))
    assert report["threshold"]["without_own"] == ["dog"]
    assert set(report["threshold"]["by_class"]) == {"cat", "dog"}
    cat = next(row for row in report["classes"] if row["name"] == "cat")
    assert report["numbers"]["recall"]["value"] == pytest.approx(cat["recall"])  # there are cats alone
    assert "Of all classes together" in tables(report)[0].note and "dog" in tables(report)[0].note


@pytest.mark.parametrize("images", [1, 6])
@pytest.mark.parametrize("by_class", [False, True])
def test_the_schema_describes_every_report(evaluation: Make, images: int, by_class: bool) -> None:
    settings = ThresholdSettings(by_class=by_class) if images > 1 else None
    check_schema(summarize(evaluation(images=images).metrics, settings))


def test_the_schema_can_refuse(evaluation: Make) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is missing (dependency group dev)")
    report = summarize(evaluation().metrics)
    for change in ({"boxes": "many"}, {"numbers": {}}, {"surprise": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check_schema(report | change)


def test_a_training_run_has_no_matches(evaluation: Make) -> None:
    with pytest.raises(SettingError, match="hold no matches"):
        summarize(dataclasses.replace(evaluation().metrics, matches=None))


def test_one_image_has_no_threshold(evaluation: Make) -> None:
    measured = evaluation(images=1).metrics
    report = summarize(measured)
    assert report["threshold"] is None and report["numbers"]["precision"]["value"] is None
    assert "too few images" in to_markdown(report)
    with pytest.raises(DataError, match="at least two"):
        summarize(measured, ThresholdSettings(min_recall=0.5))


def test_files(evaluation: Make, tmp_path: Path) -> None:
    measured, records = evaluation(name="a|b <script> [c](d)")
    report = summarize(measured)
    write_report(tmp_path / "new" / "report.json", report, measured, records)
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report
    write_report(tmp_path / "report.md", report, measured, records)
    text = (tmp_path / "report.md").read_text()
    assert "| AP50 | 0." in text and "<script>" not in text and "a\\|b" in text
    for one in NUMBERS.values():
        assert one.definition in text
    with pytest.raises(SettingError, match=r"ends in \.json, \.md or \.html"):
        write_report(tmp_path / "report.pdf", report, measured, records)


def test_markdown_is_a_table_of_as_many_cells_in_each_line(evaluation: Make) -> None:
    from markdown_it import MarkdownIt

    text = to_markdown(summarize(evaluation(name="a|b `c` *d*").metrics))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert [token.type for token in tokens].count("table_open") == 3
    assert "a|b `c` *d*" in [token.children[0].content for token in tokens if token.type == "inline" and token.children]


# ---- the page


def test_page(evaluation: Make, tmp_path: Path, look_at: Callable[..., list[str]]) -> None:
    measured, records = evaluation(name="a <script>alert(1)</script>")
    path = tmp_path / "report.html"
    history = [{"epoch": n, "train/loss": 3 / n, "val/ap": n / 20, "val/ap50": n / 10} for n in range(1, 9)]
    write_report(
        path, summarize(measured), measured, records, explain=explain_command("x.safetensors"), history=history
    )
    text = path.read_text()
    assert "<script" not in text and "alert(1)" in text
    for one in NUMBERS.values():
        assert one.definition in text
    assert "Training run" in text and "Loss by epoch" in text
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            assert look_at(path, width, scheme) == []


def test_a_large_evaluation_is_a_small_page(
    evaluation: Make, tmp_path: Path, look_at: Callable[..., list[str]]
) -> None:
    """500 images of noise, which no encoder makes small."""
    more = [
        ((float(x), float(y), x + 40.0, y + 30.0), label, 0.7)
        for label in (0, 1)
        for x in range(60, 300, 60)
        for y in (0, 90, 160)
    ]
    measured, records = evaluation(images=500, size=(640, 480), more=more)
    path = tmp_path / "report.html"
    write_report(path, summarize(measured), measured, records, explain=explain_command("x.safetensors"))
    assert path.stat().st_size < 10_000_000
    assert path.read_text().count("<figure") > 10
    assert look_at(path, 390, "light") == []


def test_the_gallery_is_filtered_by_class_and_kind(evaluation: Make, tmp_path: Path, chromium: Any) -> None:
    measured, records = evaluation()
    path = tmp_path / "report.html"
    write_report(path, summarize(measured), measured, records)
    page = chromium.new_page()
    page.goto(path.as_uri())

    def shown() -> list[str]:
        captions: list[str] = page.eval_on_selector_all(
            "figure", "all => all.filter(one => one.checkVisibility()).map(one => one.innerText)"
        )
        return captions

    everything = shown()
    kind, of_class = page.locator("select").all()
    assert len(everything) > 4
    kind.select_option(label=next(o for o in kind.inner_text().splitlines() if o.startswith("missed")))
    assert len(shown()) == 1 and shown()[0].startswith("missed: cat")
    of_class.select_option(label=next(o for o in of_class.inner_text().splitlines() if o.startswith("dog")))
    assert shown() == []
    kind.select_option("")
    assert shown() and all("dog" in caption for caption in shown() if not caption.startswith("worst"))
    of_class.select_option("")
    assert shown() == everything
    page.close()


def test_the_page_is_used_with_the_keyboard(evaluation: Make, tmp_path: Path, chromium: Any) -> None:
    """The skip link, the contents, both filters and what is folded are reached in the order of the page."""
    measured, records = evaluation()
    path = tmp_path / "report.html"
    write_report(path, summarize(measured), measured, records, explain=explain_command("x.safetensors"))
    page = chromium.new_page()
    page.goto(path.as_uri())
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("[document.activeElement.tagName, document.activeElement.innerText]"))
    tags = [tag for tag, _ in reached]
    assert reached[0][1] == "Skip to the content"
    assert tags.index("A") < tags.index("SELECT") < tags.index("SUMMARY") and tags.count("SELECT") >= 2
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(one => +one.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    named = page.eval_on_selector_all("svg[role=img]", "all => all.map(one => one.ariaLabel)")
    assert named and all(named)
    page.close()


def test_the_page_is_printed_whole(evaluation: Make, tmp_path: Path, chromium: Any) -> None:
    """Without the filters and the contents, with what is folded on the screen."""
    measured, records = evaluation()
    path = tmp_path / "report.html"
    write_report(path, summarize(measured), measured, records, explain=explain_command("x.safetensors"))
    page = chromium.new_page(color_scheme="dark")
    page.goto(path.as_uri())
    is_visible = "one.checkVisibility({contentVisibilityAuto: true}) && one.getBoundingClientRect().height > 0"
    visible = f"all => all.map(one => {is_visible})"
    assert all(page.eval_on_selector_all("select, nav", visible))
    assert not any(page.eval_on_selector_all("figure code", visible))
    page.emulate_media(media="print")
    assert not any(page.eval_on_selector_all("select, nav", visible))
    assert all(page.eval_on_selector_all("figure code, table, figure", visible))
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.close()


def test_page_without_its_images(evaluation: Make, tmp_path: Path) -> None:
    measured, records = evaluation()
    records.images[0].path.unlink()
    write_report(tmp_path / "report.html", summarize(measured), measured, records)
    assert "cannot be read: 1" in (tmp_path / "report.html").read_text()


def test_page_of_a_training_without_validation(tmp_path: Path, look_at: Callable[..., list[str]]) -> None:
    write_report(tmp_path / "report.html", None, None, None, history=[{"epoch": 1, "train/loss": 0.5}])
    assert "no validation split" in (tmp_path / "report.html").read_text()
    assert look_at(tmp_path / "report.html", 390) == []
    with pytest.raises(SettingError, match="no evaluation"):
        write_report(tmp_path / "report.md", None, None, None)


def test_tables_have_the_same_columns_in_every_row(evaluation: Make) -> None:
    for table in tables(summarize(evaluation().metrics)):
        assert table.rows and len({tuple(row) for row in table.rows}) == 1
        assert set(table.text) <= set(table.rows[0])
        for row in table.rows:
            assert not re.search(r"nan|None|-1\.000", " ".join(row.values()))
