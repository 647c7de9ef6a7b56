"""Rows to markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A markdown table of rows with the same keys: text to the left, columns of numbers to the right, None as a dash.

    What begins with a digit ("28x") counts as a number; a row of text among numbers ("not measured") turns no column.
    """
    columns = list(rows[0])
    numeric = {name: any(str(row[name])[:1].isdigit() for row in rows) for name in columns}
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if numeric[name] else "---" for name in columns) + "|",
    ]
    lines += ["| " + " | ".join(_cell(row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).replace("|", "\\|")


def times(ratio: float | None) -> str | None:
    """A ratio as the paper prints it: `28x`, `6.7x`, `0.71x`."""
    if ratio is None:
        return None
    digits = 2 if ratio < 2 else 1 if ratio < 10 else 0
    return f"{ratio:.{digits}f}x"
