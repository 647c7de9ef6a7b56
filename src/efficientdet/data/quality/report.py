"""The report of a check: what was looked at and found, as rows, JSON and one HTML page with sample images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from efficientdet import html_page as html
from efficientdet.data.quality.anchors import LOW_RECALL, AnchorReport, options_of
from efficientdet.data.quality.findings import SEVERITIES, Finding, Severity, by_severity, grouped
from efficientdet.data.records import Records
from efficientdet.errors import ImageError
from efficientdet.images.draw import jpeg, small, thumbnail
from efficientdet.images.read import read
from efficientdet.text import printable
from efficientdet.version import __version__

# Sample images, and lines, of each code.
MOST_FIGURES = 6
MOST_LINES = 200
# Findings that are listed without being asked for.
SHORT = 8
WHAT, FILE = "what", "file"


class SplitSummary(NamedTuple):
    """What a split holds.

    Attributes:
        source: its file or folder.
        images: number of images.
        boxes: number of boxes to train on.
        ignored: number of ignored regions.
        empty: number of images without a box.
        classes: boxes by name of the class.
        image_sizes: smallest and largest (width, height), by area.
        counts: what the reader changed and left out.
    """

    source: str
    images: int
    boxes: int
    ignored: int
    empty: int
    classes: dict[str, int]
    image_sizes: tuple[tuple[int, int], tuple[int, int]]
    counts: dict[str, int]

    @classmethod
    def of(cls, records: Records) -> SplitSummary:
        """The summary of a split."""
        table = records.table
        by_area = table.sizes[np.argsort(table.sizes.prod(1), kind="stable")][[0, -1], ::-1].tolist()
        return cls(
            source=str(records.source),
            images=len(records),
            boxes=records.training_boxes,
            ignored=int(table.is_ignored.sum()),
            empty=table.negatives,
            classes=dict(zip(records.class_names, records.boxes_by_class().tolist(), strict=True)),
            image_sizes=((by_area[0][0], by_area[0][1]), (by_area[1][0], by_area[1][1])),
            counts={what: count for what, count in records.counts.items() if count},
        )


@dataclass(frozen=True)
class DataReport:
    """What a check of a dataset has found.

    Attributes:
        data: the dataset.
        model: whose anchors were compared with the boxes.
        splits: what each split holds.
        anchors: how well the model's anchors fit; None without a box.
        findings: in the order of severity and code.
        labels_by: what was asked for likely label errors: empty, a model's name, or how models were trained for it.
    """

    data: str
    model: str
    splits: dict[str, SplitSummary]
    anchors: AnchorReport | None
    findings: list[Finding] = field(default_factory=list)
    labels_by: str = ""

    @property
    def counts(self) -> dict[Severity, int]:
        """How many findings there are of each severity."""
        return by_severity(self.findings)

    def fails(self, at: Severity) -> bool:
        """Whether there is a finding of this severity or a worse one."""
        worst = SEVERITIES[: SEVERITIES.index(at) + 1]
        return any(finding.severity in worst for finding in self.findings)

    def summary(self) -> str:
        """One line: how many findings there are of each severity."""
        counted = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in self.counts.items())
        return f"{self.data}: {counted if self.findings else 'nothing found'}"

    def to_json(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        content = asdict(self) | {"splits": {name: split._asdict() for name, split in self.splits.items()}}
        if self.anchors is not None:
            for plain, one in zip(content["anchors"]["suggestions"], self.anchors.suggestions, strict=True):
                plain["options"] = options_of(one, self.anchors.fit)
        findings = [finding.to_json() for finding in self.findings]
        return {"version": __version__, **content, "counts": self.counts, "findings": findings}

    def split_rows(self) -> list[dict[str, object]]:
        """A row for each split: what it holds."""
        return [
            {
                "split": printable(name),
                "images": split.images,
                "boxes": split.boxes,
                "classes with boxes": f"{sum(count > 0 for count in split.classes.values())} of {len(split.classes)}",
                "without boxes": split.empty,
                "ignored regions": split.ignored,
                "image sizes": " to ".join(dict.fromkeys(f"{width}x{height}" for width, height in split.image_sizes)),
            }
            for name, split in self.splits.items()
        ]

    def anchor_rows(self) -> list[dict[str, object]]:
        """A row for each size of boxes: how well the anchors fit."""
        return [
            {
                "size in pixels": f"from {row.low:g}" if row.high is None else f"{row.low:g} to {row.high:g}",
                "boxes": row.boxes,
                "recall of the anchors": f"{row.recall:.3f}",
                "mean of the best IoU": f"{row.mean_iou:.3f}",
            }
            for row in (self.anchors.sizes if self.anchors is not None else ())
        ]

    def suggestion_rows(self) -> list[dict[str, object]]:
        """A row for each suggestion: what to add to the command that trains, and what it brings and costs."""
        if self.anchors is None:
            return []
        fit = self.anchors.fit
        return [
            {
                "add to efficientdet train": options_of(one, fit),
                "recall of the anchors": f"{one.recall:.3f}",
                "pixels to compute": f"{(one.image_size / fit.image_size) ** 2:.1f} times",
            }
            for one in self.anchors.suggestions
        ]


def brief(findings: Iterable[Finding]) -> list[str]:
    """A line for each code of the errors and warnings among findings, the worst first."""
    return [
        f"{group[0].severity}: {group[0].rule.title.lower()}: {printable(group[0].what)}"
        + (f" ({printable(group[0].short_place)})" if group[0].short_place else "")
        + (f", and {len(group) - 1} more" if len(group) > 1 else "")
        for group in grouped(findings).values()
        if group[0].severity != "note"
    ]


def write_page(report: DataReport) -> str:
    """The page: what the dataset holds, how the anchors fit, and a section for each code of finding."""
    sections = [html.Section("dataset", "What the dataset holds", _splits(report))]
    if report.anchors is not None:
        sections.append(
            html.Section("anchors", "Sizes of the boxes, and how the anchors fit", _anchors(report, report.anchors))
        )
    sections += [
        html.Section(code, group[0].rule.title, _group(group), f"{group[0].severity} {len(group)}", group[0].severity)
        for code, group in grouped(report.findings).items()
    ]
    if not report.findings:
        sections.append(html.Section("findings", "Findings", html.paragraph("Nothing was found.")))
    facts = {
        "images": sum(split.images for split in report.splits.values()),
        "boxes": sum(split.boxes for split in report.splits.values()),
        **{f"{name}s": count for name, count in report.counts.items()},
    }
    name = printable(Path(report.data).name or report.data)
    by = f"; label errors according to {report.labels_by}" if report.labels_by else ""
    return html.page(f"{name}: dataset check", sections, f"Check of the dataset {report.data}{by}", html.tiles(facts))


def _splits(report: DataReport) -> html.Html:
    splits = html.table(report.split_rows(), ("split",))
    parts = [splits, html.element("h3", "Boxes by class"), _classes(report.splits)]
    changed = [
        html.element("li", f"{name}: {count} {what}")
        for name, split in report.splits.items()
        for what, count in split.counts.items()
    ]
    if changed:
        parts += [html.folded("What reading changes and leaves out", html.element("ul", *changed))]
    return html.join(parts)


def _classes(splits: Mapping[str, SplitSummary]) -> html.Html:
    names = dict.fromkeys(name for split in splits.values() for name in split.classes)
    most = max((count for split in splits.values() for count in split.classes.values()), default=0) or 1
    rows: list[dict[str, object]] = []
    for name in names:
        counts = {split: summary.classes.get(name, 0) for split, summary in splits.items()}
        bars = {split: html.bar(count / most, str(count)) for split, count in counts.items()}
        rows.append({"class": printable(name, 80), **bars})
    return html.table(rows, ("class",))


def _anchors(report: DataReport, anchors: AnchorReport) -> html.Html:
    fit, recall = anchors.fit, "recall of the anchors"
    rows = [
        row | {recall: html.bar(size.recall, str(row[recall]), "" if size.recall >= LOW_RECALL else "warning")}
        for row, size in zip(report.anchor_rows(), anchors.sizes, strict=True)
    ]
    intro = html.paragraph(
        f"Recall is the share of boxes that at least one anchor of {report.model} meets with an IoU of 0.5 or more, at "
        f"image size {fit.image_size}: {fit.recall:.1%} of {anchors.boxes} boxes. The size of a box is the square root "
        "of its area in pixels of the network's input, after the resize that training and prediction use. The smallest "
        f"anchor has {anchors.smallest_anchor:g} pixels; {anchors.below_smallest} boxes are smaller."
    )
    parts = [intro, html.table(rows, ("size in pixels",))]
    suggested = html.table(report.suggestion_rows(), ("add to efficientdet train",))
    if suggested:
        parts += [html.element("h3", "Settings with a better recall"), suggested]
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
    if other is None:
        encoded, window = thumbnail(pixels, finding.boxes_xyxy)
        boxes = [html.MarkedBox(box) for box in finding.boxes_xyxy]
    else:
        both = _side_by_side(small(Image.fromarray(pixels)), small(Image.fromarray(other)))
        encoded, window, boxes = jpeg(both), (0.0, 0.0, float(both.width), float(both.height)), []
    caption = f"{printable(Path(str(finding.file)).name, 80)}: {printable(finding.what, 200)}"
    return html.Figure(encoded, window, boxes, caption, f"{finding.rule.title}: {caption}")


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    gap, height = 6, max(left.height, right.height)
    both = Image.new("RGB", (left.width + gap + right.width, height), (128, 128, 128))
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both
