"""Tables in markdown, and how the paper writes ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A markdown table of rows with the same keys; None is a dash.

    A column is aligned to the right where a value begins with a digit, as in `28x`.
    """
    columns = list(rows[0])
    numeric = {name: any(str(row[name])[:1].isdigit() for row in rows) for name in columns}
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if numeric[name] else "---" for name in columns) + "|",
        *("| " + " | ".join("-" if row[name] is None else str(row[name]) for name in columns) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def times(ratio: float | None) -> str | None:
    """A ratio as the paper prints it: `28x`, `6.7x`, `0.71x`."""
    if ratio is None:
        return None
    digits = 2 if ratio < 2 else 1 if ratio < 10 else 0
    return f"{ratio:.{digits}f}x"
