"""The report of a check: what was looked at, and what was found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from efficientdet.data.quality.anchors import AnchorReport, options_of
from efficientdet.data.quality.findings import SEVERITIES, Finding, Severity, by_severity, grouped
from efficientdet.data.records import Records
from efficientdet.text import printable
from efficientdet.version import __version__


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
                "size in pixels": f"{row.low:g} to {row.high:g}" if np.isfinite(row.high) else f"from {row.low:g}",
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
