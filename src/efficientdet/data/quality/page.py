"""The report of a check as one HTML page, with sample images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from efficientdet import html_page as html
from efficientdet.data.quality.anchors import AnchorReport, options_of
from efficientdet.data.quality.findings import Finding, grouped
from efficientdet.data.quality.report import DataReport, SplitSummary
from efficientdet.errors import ImageError
from efficientdet.images.read import read
from efficientdet.images.thumbnail import QUALITY, small, window_around
from efficientdet.text import printable

# Sample images, and lines, of each code.
MOST_FIGURES = 6
MOST_LINES = 200
# Findings that are listed without being asked for.
SHORT = 8
WHAT, FILE = "what", "file"


def write_page(report: DataReport) -> str:
    """The page: what the dataset holds, how the anchors fit, and a section for each code of finding."""
    sections = [html.Section("dataset", "What the dataset holds", _splits(report.splits))]
    if report.anchors is not None:
        sections.append(html.Section("anchors", "Sizes of the boxes, and how the anchors fit", _anchors(report)))
    groups = grouped(report.findings)
    sections += [
        html.Section(code, group[0].rule.title, _group(group), f"{group[0].severity} {len(group)}", group[0].severity)
        for code, group in groups.items()
    ]
    if not groups:
        sections.append(html.Section("findings", "Findings", html.paragraph("Nothing was found.")))
    boxes = sum(split.boxes for split in report.splits.values())
    facts = {
        "images": sum(split.images for split in report.splits.values()),
        "boxes": boxes,
        **{f"{name}s": count for name, count in report.counts.items()},
    }
    name = printable(Path(report.data).name or report.data)
    subtitle = f"Check of the dataset {report.data}" + (
        f"; label errors according to {report.labels_by}" if report.labels_by else ""
    )
    return html.page(f"{name}: dataset check", sections, subtitle, html.tiles(facts))


def _splits(splits: dict[str, SplitSummary]) -> html.Html:
    rows: list[dict[str, object]] = [
        {
            "split": name,
            "images": split.images,
            "boxes": split.boxes,
            "without boxes": split.empty,
            "ignored regions": split.ignored,
            "image sizes": " to ".join(dict.fromkeys(f"{width}×{height}" for width, height in split.image_sizes)),
        }
        for name, split in splits.items()
    ]
    parts = [html.table(rows, ("split",)), html.element("h3", "Boxes by class"), _classes(splits)]
    changed = [
        html.element("li", f"{name}: {count} {what}")
        for name, split in splits.items()
        for what, count in split.counts.items()
    ]
    if changed:
        parts += [html.folded("What reading changes and leaves out", html.element("ul", *changed))]
    return html.join(parts)


def _classes(splits: dict[str, SplitSummary]) -> html.Html:
    names = dict.fromkeys(name for split in splits.values() for name in split.classes)
    most = max((count for split in splits.values() for count in split.classes.values()), default=0) or 1
    rows: list[dict[str, object]] = []
    for name in names:
        counts = {split: summary.classes.get(name, 0) for split, summary in splits.items()}
        bars = {split: html.bar(count / most, str(count)) for split, count in counts.items()}
        rows.append({"class": printable(name, 80), **bars})
    return html.table(rows, ("class",))


def _anchors(report: DataReport) -> html.Html:
    anchors: AnchorReport = report.anchors  # type: ignore[assignment]
    fit = anchors.fit
    rows: list[dict[str, object]] = []
    for row in anchors.sizes:
        name = f"{row.low:g}–{row.high:g}" if np.isfinite(row.high) else f"{row.low:g} and more"
        tone = "" if row.recall >= 0.9 else "warning"
        share = row.boxes / sum(one.boxes for one in anchors.sizes)
        rows.append(
            {
                "size in pixels": name,
                "boxes": html.bar(share, f"{share:.0%}"),
                "recall of the anchors": html.bar(row.recall, f"{row.recall:.2f}", tone),
                "mean of the best IoU": f"{row.mean_iou:.2f}",
            }
        )
    intro = html.paragraph(
        f"Recall is the share of boxes that at least one anchor of {report.model} meets with an IoU of 0.5 or more, at "
        f"image size {fit.image_size}: {fit.recall:.1%} of {anchors.boxes} boxes. The size of a box is the square root "
        "of its area in pixels of the network's input, after the resize that training and prediction use. The smallest "
        f"anchor has {anchors.smallest_anchor:g} pixels; {anchors.below_smallest} boxes are smaller."
    )
    parts = [intro, html.table(rows, ("size in pixels",))]
    if anchors.suggestions:
        suggested: list[dict[str, object]] = [
            {
                "add to efficientdet train": html.element("code", options_of(one, fit)),
                "recall of the anchors": html.bar(one.recall, f"{one.recall:.2f}"),
                "pixels to compute": f"{(one.image_size / fit.image_size) ** 2:.1f} times",
            }
            for one in anchors.suggestions
        ]
        parts += [
            html.element("h3", "Settings with a better recall"),
            html.table(suggested, ("add to efficientdet train",)),
        ]
    return html.join(parts)


def _group(group: Sequence[Finding]) -> html.Html:
    advice = html.paragraph(group[0].rule.advice, class_="advice")
    figures = [figure for finding in _sample(group) if (figure := _figure(finding)) is not None]
    shown = html.gallery(figures) if figures else html.Html("")
    if len(group) == 1 and group[0].image_id is None:
        return html.join([html.paragraph(printable(group[0].what, 500)), advice])
    lines = html.table([_row(finding) for finding in group[:MOST_LINES]], (WHAT, FILE))
    if len(group) <= SHORT:
        return html.join([advice, shown, lines])
    more = len(group) - MOST_LINES
    rest = html.paragraph(f"And {more} more; --json lists all.", class_="muted") if more > 0 else html.Html("")
    return html.join([advice, shown, html.folded(f"All {len(group)}", lines, rest)])


def _row(finding: Finding) -> dict[str, object]:
    ids = ", ".join(map(str, finding.annotation_ids))
    return {
        WHAT: printable(finding.what, 500),
        FILE: printable(Path(finding.file).name, 120) if finding.file else "–",
        "split": finding.split or "–",
        "image id": "–" if finding.image_id is None else printable(finding.image_id, 80),
        "annotation id": printable(ids, 120) or "–",
    }


def _sample(group: Sequence[Finding]) -> Iterator[Finding]:
    """The first findings of a code that are about an image, each image once."""
    seen: set[str | None] = set()
    for finding in group:
        if finding.image_id is not None and finding.file not in seen and len(seen) < MOST_FIGURES:
            seen.add(finding.file)
            yield finding


def _figure(finding: Finding) -> html.Figure | None:
    """The image of a finding, or what is around its boxes; of a pair both images side by side."""
    try:
        pixels = read(str(finding.file))
        other = read(finding.other_file) if finding.other_file is not None else None
    except ImageError:
        return None
    height, width = pixels.shape[:2]
    window = window_around(finding.boxes_xyxy, width, height)
    image = small(Image.fromarray(pixels).crop(window))
    if other is not None:
        image = _side_by_side(image, small(Image.fromarray(other)))
        window = (0.0, 0.0, float(image.width), float(image.height))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY)
    name = printable(Path(str(finding.file)).name, 80)
    boxes = [html.MarkedBox(box) for box in finding.boxes_xyxy] if other is None else []
    caption = f"{name}: {printable(finding.what, 200)}"
    return html.Figure(encoded.getvalue(), window, boxes, caption, f"{finding.rule.title}: {caption}")


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    gap, height = 6, max(left.height, right.height)
    both = Image.new("RGB", (left.width + gap + right.width, height), (128, 128, 128))
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both
