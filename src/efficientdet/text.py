"""Text from outside (class names, paths, metadata) made safe to show: in a terminal, a message, JSON, HTML or markdown.

Control characters, terminal escapes and bytes that are no text are written as escapes, and long text is cut.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

# Characters of a path or URL in a message.
LONGEST_PATH = 5000
# Characters of a class name, in a dataset or a checkpoint; each detection repeats it.
LONGEST_CLASS_NAME = 1000

# C0 and C1 controls (terminal escapes begin with one), marks that reverse the direction of text, and lone surrogates,
# which stand for the bytes of a file name that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~])")


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: object, longest: int = 200) -> str:
    """One line of text that is safe to print.

    Args:
        text: anything; its `str` is taken.
        longest: characters kept; the middle of longer text is replaced by an ellipsis, for both ends tell.
    """
    plain = str(text)
    if len(plain) > longest:
        head = longest // 2
        plain = f"{plain[:head]}…{plain[head + 1 - longest :]}"
    return _UNSAFE.sub(_escape, plain)


def printable_lines(text: object, longest: int = 20_000) -> str:
    """Text of several lines that is safe to print; tabs become spaces."""
    plain = str(text)
    plain = plain if len(plain) <= longest else f"{plain[:longest]}…"
    return "\n".join(_UNSAFE.sub(_escape, line.expandtabs()) for line in plain.split("\n"))


def without_password(source: str) -> str:
    """A path or URL for messages: the user name and password of a URL are left out."""
    return printable(re.sub(r"(?<=://)[^/@]*@", "", source), LONGEST_PATH)


def in_markdown(text: object, longest: int = 2000) -> str:
    """One line of text whose characters have no meaning in markdown."""
    return _MARKDOWN.sub(r"\\\1", printable(text, longest))


def in_html(text: object, longest: int = 2000) -> str:
    """One line of text for an HTML page: in an element, or in the quotes of an attribute."""
    return html.escape(printable(text, longest))


def in_json(text: str) -> str:
    """JSON in which lone surrogates are escapes, so that it can be written as UTF-8."""
    return _SURROGATES.sub(_escape, text)


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
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
