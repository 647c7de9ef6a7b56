"""The tables of a report, which a terminal, markdown and HTML show alike."""

from __future__ import annotations

from typing import Any, NamedTuple

from efficientdet.evaluation.coco_ap import number
from efficientdet.evaluation.numbers import rows_of
from efficientdet.text import in_markdown, markdown_table, printable


class Table(NamedTuple):
    """A table of the report, the same on a terminal, in markdown and in HTML.

    Attributes:
        anchor: its id on the page.
        title: what it shows.
        rows: text by column.
        text: columns that hold words; the others hold numbers.
        note: a line below it.
    """

    anchor: str
    title: str
    rows: list[dict[str, str]]
    text: tuple[str, ...]
    note: str = ""


def tables(report: dict[str, Any]) -> list[Table]:
    """The tables of a report.

    Args:
        report: of `summarize`.
    """
    size = f"{report['images']} images, {report['boxes']} boxes"
    classes = [
        {
            "class": printable(row["name"], 80),
            "boxes": str(row["objects"]),
            "AP": number(row["ap"]),
            "AP50": number(row["ap50"]),
            "score threshold": number(row["score_threshold"]),
            **{name: number(row[name]) for name in ("precision", "recall")},
            "F1": number(row["f1"]),
        }
        for row in report["classes"]
    ]
    mistakes = [
        {
            "kind": kind,
            "count": str(row["count"]),
            "AP50 to gain": number(row["ap50_gain"]),
            "what it is": row["meaning"],
        }
        for kind, row in report["mistakes"].items()
    ]
    return [
        Table("numbers", f"Numbers, {size}", rows_of(report["numbers"]), ("number", "definition"), _note(report)),
        Table("classes", "By class", classes, ("class",)),
        Table("mistakes", "Mistakes at IoU 0.50", mistakes, ("kind", "what it is")),
    ]


def _note(report: dict[str, Any]) -> str:
    threshold = report["threshold"]
    if threshold is None:
        return "No score threshold could be chosen: there are too few images or objects."
    if threshold["by_class"] is None:
        value = f"{threshold['score_threshold']:.3f}"
        return f"Score threshold {value}, chosen on half of the images for {threshold['aim']}."
    note = f"Score thresholds by class, chosen on half of the images for {threshold['aim']}."
    if threshold["without_own"]:
        names = ", ".join(printable(name, 80) for name in threshold["without_own"])
        note += f" Of all classes together, since they have too few objects or do not reach it: {names}."
    return note


def to_markdown(report: dict[str, Any]) -> str:
    """The report for a pull request.

    Args:
        report: of `summarize`.
    """
    parts = ["## Evaluation\n"]
    for table in tables(report):
        rows = [{name: in_markdown(cell) for name, cell in row.items()} for row in table.rows]
        parts += [f"### {table.title}\n", markdown_table(rows) if rows else "none\n"]
        parts += [f"{in_markdown(table.note)}\n"] if table.note else []
    parts.append("\n".join(f"- {name}: {meaning}" for name, meaning in report["definitions"].items()) + "\n")
    return "\n".join(parts)
