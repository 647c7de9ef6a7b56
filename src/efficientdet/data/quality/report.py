"""The report of a check: what was looked at, and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from efficientdet.data.quality.anchors import AnchorReport, options_of
from efficientdet.data.quality.classes import boxes_by_class
from efficientdet.data.quality.columns import columns_of
from efficientdet.data.quality.findings import SEVERITIES, Finding, Severity, by_severity, grouped
from efficientdet.data.records import Records
from efficientdet.text import printable
from efficientdet.version import __version__

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
# Characters of an example in the table.
LONGEST_EXAMPLE = 300


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
        columns = columns_of(records)
        by_area = columns.sizes[np.argsort(columns.sizes.prod(1), kind="stable")][[0, -1], ::-1].tolist()
        return cls(
            source=str(records.source),
            images=len(records),
            boxes=records.training_boxes,
            ignored=int(columns.is_ignored.sum()),
            empty=columns.negatives,
            classes=dict(zip(records.class_names, boxes_by_class(records).tolist(), strict=True)),
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
        anchors = None
        if self.anchors is not None:
            anchors = {
                **self.anchors._asdict(),
                "fit": self.anchors.fit._asdict(),
                "sizes": [
                    row._asdict() | {"high": None if np.isinf(row.high) else row.high} for row in self.anchors.sizes
                ],
                "suggestions": [
                    one._asdict() | {"options": options_of(one, self.anchors.fit)} for one in self.anchors.suggestions
                ],
            }
        return {
            "version": __version__,
            "data": self.data,
            "model": self.model,
            "labels_by": self.labels_by,
            "counts": self.counts,
            "splits": {name: split._asdict() for name, split in self.splits.items()},
            "anchors": anchors,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def table(self) -> Group:
        """The report for a terminal."""
        parts: list[Table | Text] = [_splits(self.splits)]
        if self.anchors is not None:
            parts += _anchors(self.anchors, self.model)
        if self.findings:
            parts += [_findings(self.findings)]
        return Group(*parts)


def brief(findings: Iterable[Finding]) -> list[str]:
    """A line for each code of the errors and warnings among findings, the worst first."""
    return [
        f"{group[0].severity}: {group[0].rule.title.lower()}: {printable(group[0].what)}"
        + (f" ({printable(group[0].short_place)})" if group[0].short_place else "")
        + (f", and {len(group) - 1} more" if len(group) > 1 else "")
        for group in grouped(findings).values()
        if group[0].severity != "note"
    ]


def _table(title: str, columns: Mapping[str, str]) -> Table:
    heading = Text(title) if title else None
    table = Table(title=heading, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title_justify="left")
    for name, justify in columns.items():
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    return table


def _splits(splits: Mapping[str, SplitSummary]) -> Table:
    names = ("images", "boxes", "classes with boxes", "without boxes", "ignored regions")
    table = _table("splits", {"split": "left", **dict.fromkeys(names, "right"), "image sizes": "left"})
    for name, split in splits.items():
        used = sum(count > 0 for count in split.classes.values())
        sizes = " to ".join(dict.fromkeys(f"{width}x{height}" for width, height in split.image_sizes))
        numbers = (split.images, split.boxes, f"{used} of {len(split.classes)}", split.empty, split.ignored)
        table.add_row(Text(printable(name)), *map(str, numbers), sizes)
    return table


def _anchors(report: AnchorReport, model: str) -> list[Table | Text]:
    fit = report.fit
    title = Text(f"anchors of {model} at image size {fit.image_size}: recall {fit.recall:.3f}", style="italic")
    table = _table("", {"size of box": "left", "boxes": "right", "recall": "right", "mean of best IoU": "right"})
    for row in report.sizes:
        name = f"{row.low:g} to {row.high:g}" if np.isfinite(row.high) else f"from {row.low:g}"
        table.add_row(name, str(row.boxes), f"{row.recall:.3f}", f"{row.mean_iou:.3f}")
    lines = [f"  {options_of(one, fit)}: recall {one.recall:.3f}" for one in report.suggestions]
    return [title, table, *([Text("\n".join(["better when training:", *lines, ""]))] if lines else [])]


def _findings(findings: Iterable[Finding]) -> Table:
    columns = {"severity": "left", "code": "left", "count": "right", "first of them": "left", "what to do": "left"}
    table = _table("findings", columns)
    for code, group in grouped(findings).items():
        first = group[0]
        place = f" ({first.short_place})" if first.short_place else ""
        example = printable(first.what, LONGEST_EXAMPLE) + printable(place, LONGEST_EXAMPLE)
        severity = Text(first.severity, style=STYLES[first.severity])
        table.add_row(severity, code, str(len(group)), Text(example), Text(first.rule.advice))
        table.add_section()
    return table
