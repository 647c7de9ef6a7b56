"""The report of an evaluation as one HTML page: numbers, curves, confusion and a gallery of mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from efficientdet import html_page as html
from efficientdet.errors import ImageError
from efficientdet.evaluation.coco_ap import number
from efficientdet.evaluation.matching import Matches
from efficientdet.evaluation.mistakes import KINDS, find_mistakes
from efficientdet.images.read import read
from efficientdet.images.thumbnail import thumbnail
from efficientdet.text import printable

# Figures of each kind of mistake, and curves in a chart.
MOST_OF_A_KIND = 8
MOST_CURVES = 8
# A wrong detection on background with at least this score may be an object that nobody has annotated.
SUSPICIOUS = 0.6


def write_page(report: Mapping[str, Any], matches: Matches, paths: Mapping[Any, Path], title: str) -> str:
    """The page.

    Args:
        report: of `summarize`.
        matches: of the same evaluation.
        paths: file of each image, by its id; images that cannot be read are left out of the gallery, and counted.
        title: the page's heading.
    """
    metrics, threshold = report["metrics"], report["threshold"]
    facts: dict[str, object] = {}
    for name in ("ap", "ap50"):
        facts[name.upper()] = number(metrics[name])
        facts[f"95 % interval of {name.upper()}"] = _range(report["intervals"][name])
    facts |= {"images": metrics["images"], "boxes": metrics["boxes"]}
    if threshold:
        facts |= {"score threshold": f"{threshold['score_threshold']:.2f}"}
        facts |= {name: number(threshold[name]) for name in ("precision", "recall", "f1")}
    sections = [
        html.Section("classes", "By class", _classes(report)),
        html.Section("mistakes", "Mistakes by kind", _mistakes(report)),
        html.Section("gallery", "Mistakes to look at", _gallery(report, matches, paths)),
        html.Section("curves", "Curves", _curves(report)),
        html.Section("confusion", "What was taken for what", _confusion(report)),
        html.Section("definitions", "How each number is defined", _definitions(report)),
    ]
    return html.page(title, sections, summary=html.tiles(facts))


def _classes(report: Mapping[str, Any]) -> html.Html:
    metrics = report["metrics"]
    rows = [
        {
            "class": printable(row["name"], 80),
            "boxes": row["objects"],
            "AP": html.bar(row["ap"] or 0.0, number(row["ap"])),
            "AP50": html.bar(row["ap50"] or 0.0, number(row["ap50"])),
        }
        for row in report["classes"]
    ]
    sizes = [
        {"objects": name, "AP": number(metrics[f"ap_{name}"]), "AR100": number(metrics[f"ar_{name}"])}
        for name in ("small", "medium", "large")
    ]
    by_size = html.table(sizes, ("objects",), "By size: small is below 32 x 32 pixels, large above 96 x 96")
    return html.join([html.table(rows, ("class",)), by_size])


def _mistakes(report: Mapping[str, Any]) -> html.Html:
    most = max(row["ap50_gain"] for row in report["mistakes"].values()) or 1.0
    rows = [
        {
            "kind": kind,
            "what it is": row["meaning"],
            "count": row["count"],
            "AP50 to gain": html.bar(row["ap50_gain"] / most, f"{row['ap50_gain']:.3f}"),
        }
        for kind, row in report["mistakes"].items()
    ]
    advice = html.paragraph(
        "All detections down to a score of 0.001 are counted. Work on the largest gain first: "
        "missed objects want a larger image size or more examples, poor boxes better "
        "annotations or longer training, wrong classes more examples of the two.", class_="advice",
    )  # fmt: skip
    return html.join([html.table(rows, ("kind", "what it is")), advice])


class _Mistake(NamedTuple):
    """One mistake, ready to be shown."""

    kind: str
    image: int
    class_name: str
    text: str
    box_xywh: np.ndarray


def _worst(report: Mapping[str, Any], matches: Matches) -> Iterator[_Mistake]:
    """The mistakes of each kind that count most: confident detections, large missed objects."""
    mistakes, names = find_mistakes(matches), matches.class_names
    detections, objects = matches.detections, matches.objects
    threshold = report["confusion"]["score_threshold"]
    for index, kind in enumerate(list(KINDS)[:-1]):
        rows = np.flatnonzero((mistakes.kinds == index) & (detections.scores >= threshold))
        for row in rows[:MOST_OF_A_KIND]:
            name, score = names[detections.labels[row]], float(detections.scores[row])
            text = f"{kind}: {printable(name, 80)} {score:.2f}"
            if mistakes.objects[row] >= 0:
                text += f", annotated as {printable(names[objects.labels[mistakes.objects[row]]], 80)}"
            if kind == "background" and score >= SUSPICIOUS:
                text += "; an object without a label?"
            yield _Mistake(kind, int(detections.images[row]), name, text, detections.boxes_xywh[row])
    missed = np.flatnonzero(mistakes.is_missed)
    for row in missed[np.argsort(-objects.areas[missed], kind="stable")][:MOST_OF_A_KIND]:
        name = names[objects.labels[row]]
        yield _Mistake(
            "missed", int(objects.images[row]), name, f"missed: {printable(name, 80)}", objects.boxes_xywh[row]
        )


def _gallery(report: Mapping[str, Any], matches: Matches, paths: Mapping[Any, Path]) -> html.Html:
    figures, unreadable = [], set()
    for mistake in _worst(report, matches):
        image_id = matches.image_ids[mistake.image]
        try:
            pixels = read(paths[image_id])
        except (ImageError, KeyError):
            unreadable.add(image_id)
            continue
        own = matches.objects.images == mistake.image
        truth = [html.MarkedBox(_corners(box), "truth", "annotated") for box in matches.objects.boxes_xywh[own]]
        box = _corners(mistake.box_xywh)
        jpeg, window = thumbnail(pixels, [box])
        caption = f"{mistake.text}; image {printable(image_id, 80)}"
        boxes = [*truth, html.MarkedBox(box, title=mistake.text)]
        figures.append(html.Figure(jpeg, window, boxes, caption, caption, (mistake.kind, mistake.class_name)))
    if not figures:
        return html.paragraph("There are none at this score threshold, or their images cannot be read.")
    threshold = report["confusion"]["score_threshold"]
    intro = html.paragraph(
        f"The most confident mistakes of each kind at score {threshold:.2f} or more, and the largest missed objects. "
        "Annotated boxes are green, the mistake is pink."
    )
    left_out = [html.paragraph(f"Images that cannot be read: {len(unreadable)}.")] if unreadable else []
    filters = list(dict.fromkeys([figure.kinds[0] for figure in figures] + [figure.kinds[1] for figure in figures]))
    return html.join([intro, *left_out, html.gallery(figures, "mistakes", filters)])


def _corners(box_xywh: np.ndarray) -> tuple[float, float, float, float]:
    left, top, width, height = (float(value) for value in box_xywh)
    return left, top, left + width, top + height


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
    calibration = report["calibration"]
    bins = zip(calibration["mean_scores"], calibration["precisions"], strict=True)
    known = [(x, y) for x, y in bins if x is not None and y is not None]
    reliability = [html.Line("measured", known, marks=True), html.Line("score = precision", [(0, 0), (1, 1)])]
    charts = [
        ("Precision over recall at IoU 0.50", html.chart(precision, "recall", "precision", _told("Precision", rows))),
        ("F1 over the score threshold", html.chart(f1, "score threshold", "F1", _told("F1", rows))),
        (
            f"Calibration: expected error {calibration['error']:.3f}",
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
    threshold = report["confusion"]["score_threshold"]
    intro = html.paragraph(
        f"At score {threshold:.2f} and IoU 0.50. Objects detected as background were missed; what was detected on "
        "background is false."
    )
    return html.join([intro, html.table(rows, ("annotated as", "detected as"))])


def _definitions(report: Mapping[str, Any]) -> html.Html:
    items = [html.element("li", html.element("b", name), f": {text}") for name, text in report["definitions"].items()]
    return html.element("ul", *items)


def _range(interval: list[float | None]) -> str:
    return f"{number(interval[0])} to {number(interval[1])}"
