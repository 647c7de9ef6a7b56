"""The report of an evaluation as one HTML page: the run, numbers, mistakes, a gallery, curves and confusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from efficientdet import html_page as html
from efficientdet.evaluation.coco_ap import number
from efficientdet.evaluation.gallery import Gallery
from efficientdet.evaluation.numbers import NUMBERS, text_of
from efficientdet.evaluation.tables import Table, tables
from efficientdet.text import printable

# Curves in a chart.
MOST_CURVES = 8
# What is drawn of a training, by the names in its log.
RUN_CHARTS = {
    "Loss": ("train/loss", "train/class_loss", "train/box_loss", "val/loss"),
    "Average precision": ("val/ap", "val/ap50", "val/ap75"),
}
# Numbers on top of the page.
HEADLINE = ("ap", "ap50", "precision", "recall", "f1", "images_per_second")
# Columns of tables that get a bar as long as the number.
BARS = ("AP", "AP50", "AP50 to gain")
ADVICE = (
    "All detections down to a score of 0.001 are counted. Work on the largest gain first: missed objects want a larger "
    "image size or more examples, poor boxes better annotations or longer training, wrong classes more examples of the "
    "two."
)


def write_page(
    title: str,
    report: dict[str, Any] | None,
    gallery: Gallery | None,
    history: Sequence[Mapping[str, float]],
) -> str:
    """The page.

    Args:
        title: its heading.
        report: of `summarize`; None for a training without a validation split.
        gallery: of its images; None without any.
        history: what a training measured, by epoch; empty for none.
    """
    sections = [html.Section("run", "The run", _run(history))] if history else []
    if report is None:
        note = html.paragraph("There was no validation split, so nothing was evaluated.")
        return html.page(title, [*sections, html.Section("numbers", "Numbers", note)])
    parts = {table.anchor: html.Section(table.anchor, table.title, _table(table)) for table in tables(report)}
    sections += [parts["numbers"], parts["classes"], parts["mistakes"]]
    if gallery is not None:
        sections.append(html.Section("gallery", "Images to look at", gallery.section(report)))
    sections += [
        html.Section("curves", "Curves", _curves(report)),
        html.Section("confusion", "What was taken for what", _confusion(report)),
        html.Section("definitions", "How the rest is defined", _definitions(report)),
    ]
    facts: dict[str, object] = {}
    for name in HEADLINE:
        one = report["numbers"][name]
        if one["value"] is None:
            continue
        between = [html.element("small", " to ".join(text_of(name, end) for end in one["interval"] or ()))]
        facts[NUMBERS[name].label] = html.join([text_of(name, one["value"]), *(between if one["interval"] else [])])
    return html.page(title, sections, "Below a number: its 95 % interval over images.", html.tiles(facts))


def _table(table: Table) -> html.Html:
    columns = [name for name in BARS if table.rows and name in table.rows[0]]
    # Average precision has a scale of its own; gains are compared with the largest.
    most = {name: max(_share(row[name]) for row in table.rows) if "gain" in name else 1.0 for name in columns}
    rows = [
        {
            name: html.bar(_share(cell) / (most[name] or 1.0), cell) if name in most else cell
            for name, cell in row.items()
        }
        for row in table.rows
    ]
    notes = [html.paragraph(table.note)] if table.note else []
    notes += [html.paragraph(ADVICE, class_="advice")] if table.anchor == "mistakes" else []
    return html.join([html.table(rows, table.text), *notes])


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # n.a.
        return 0.0


def _run(history: Sequence[Mapping[str, float]]) -> html.Html:
    """Charts of a training: losses and average precisions over its epochs."""
    last = 5.0 * math.ceil(max(row["epoch"] for row in history) / 5)  # the axis has five parts
    charts = []
    for heading, names in RUN_CHARTS.items():
        points = {name: [(row["epoch"], row[name]) for row in history if name in row] for name in names}
        lines = [html.Line(name, places, marks=True) for name, places in points.items() if places]
        if lines:
            top = _round_up(max(y for line in lines for _, y in line.points)) if heading == "Loss" else 1.0
            ends = ", ".join(f"{line.name} {line.points[-1][1]:.3g}" for line in lines)
            told = f"{heading} by epoch; at the end {ends}."
            drawing = html.chart(lines, "epoch", heading, told, (0.0, last), (0.0, top))
            charts.append(html.element("div", html.element("h3", heading), drawing))
    return html.element("div", *charts, class_="charts") if charts else html.paragraph("The run kept no log.")


def _round_up(value: float) -> float:
    """The next number with one digit."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return max(1, math.ceil(value / unit)) * unit


def _curves(report: Mapping[str, Any]) -> html.Html:
    rows = [row for row in report["classes"] if row["objects"] and row["curve"]["scores"]]
    rows = sorted(rows, key=lambda row: -row["objects"])[:MOST_CURVES]
    precision, f1 = [], []
    for row in rows:
        name, curve = printable(row["name"], 60), row["curve"]
        pairs = list(zip(curve["recall"], curve["precision"], strict=True))
        precision.append(html.Line(name, pairs))
        harmonic = [2 * r * p / (r + p) if r + p else 0.0 for r, p in pairs]
        f1.append(html.Line(name, list(zip(curve["scores"], harmonic, strict=True))))
    bins = zip(report["calibration"]["mean_scores"], report["calibration"]["precisions"], strict=True)
    known = [(x, y) for x, y in bins if x is not None and y is not None]
    reliability = [html.Line("measured", known, marks=True), html.Line("score = precision", [(0, 0), (1, 1)])]
    error = number(report["numbers"]["calibration_error"]["value"])
    charts = [
        ("Precision over recall at IoU 0.50", html.chart(precision, "recall", "precision", _told("Precision", rows))),
        ("F1 over the score threshold", html.chart(f1, "score threshold", "F1", _told("F1", rows))),
        (
            f"Calibration: expected error {error}",
            html.chart(reliability, "mean score", "share that is right", "Precision of detections by score."),
        ),
    ]
    parts = [html.element("div", html.element("h3", heading), drawing) for heading, drawing in charts]
    more = sum(bool(row["objects"]) for row in report["classes"]) - len(rows)
    note = (
        [html.paragraph(f"The {len(rows)} classes with most boxes; {more} more are in the JSON.")] if more > 0 else []
    )
    return html.join([html.element("div", *parts, class_="charts"), *note])


def _told(what: str, rows: list[dict[str, Any]]) -> str:
    aps = ", ".join(f"{printable(row['name'], 60)} AP50 {number(row['ap50'])}" for row in rows)
    return f"{what} by class: {aps}."


def _confusion(report: Mapping[str, Any]) -> html.Html:
    names = [printable(name, 40) for name in report["confusion"]["names"]]
    rows: list[dict[str, object]] = []
    for name, counts in zip(names, report["confusion"]["counts"], strict=True):
        total = sum(counts) or 1
        taken = sorted(enumerate(counts), key=lambda pair: -pair[1])
        shown = ", ".join(f"{names[column]} {count} ({count / total:.0%})" for column, count in taken if count)
        rows.append({"annotated as": name, "boxes": sum(counts), "detected as": shown or "-"})
    intro = html.paragraph(
        "At the score threshold and IoU 0.50. Objects detected as background were missed; what was detected on "
        "background is false."
    )
    return html.join([intro, html.table(rows, ("annotated as", "detected as"))])


def _definitions(report: Mapping[str, Any]) -> html.Html:
    items = [html.element("li", html.element("b", name), f": {text}") for name, text in report["definitions"].items()]
    return html.element("ul", *items)
