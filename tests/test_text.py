"""Text from outside is shown without doing anything to the terminal, the file or the page that shows it."""

from __future__ import annotations

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from efficientdet.text import in_json, in_markdown, markdown_table, printable, printable_lines

ANYTHING = st.text(st.characters(codec=None, exclude_categories=()), max_size=300)


@given(ANYTHING, st.integers(3, 80))
def test_printable_text_is_one_bounded_line_without_controls(text: str, longest: int) -> None:
    shown = printable(text, longest)
    assert all(character.isprintable() or character.isspace() or ord(character) > 0x9F for character in shown)
    assert "\n" not in shown and "\x1b" not in shown
    shown.encode()  # no lone surrogate
    assert len(shown) <= 6 * longest
    if len(text) <= longest and text.isascii() and text.isprintable():
        assert shown == text


def test_a_long_text_keeps_both_ends() -> None:
    shown = printable("a" * 50 + "b" * 50, 21)
    assert len(shown) == 21 and shown.startswith("aaaa") and shown.endswith("bbbb") and "…" in shown


def test_lines_stay_lines() -> None:
    assert printable_lines("one\n\x1b[31mtwo\x1b[0m\n") == "one\n\\x1b[31mtwo\\x1b[0m\n"


def test_markdown_has_no_meaning_left() -> None:
    assert in_markdown("a|b <img src=x> [l](u) `c`\n# h") == "a\\|b \\<img src=x\\> \\[l\\](u) \\`c\\`\\\\x0a\\# h"


@given(ANYTHING)
def test_json_of_any_text_can_be_written_and_read_back(text: str) -> None:
    encoded = in_json(json.dumps({"name": text}, ensure_ascii=False)).encode("utf-8")
    assert json.loads(encoded.decode("utf-8")) == {"name": text}


def test_a_file_name_that_is_no_utf_8_survives_json() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert os.fsencode(json.loads(in_json(json.dumps(name, ensure_ascii=False)))) == b"caf\xe9.jpg"


def test_numbers_stand_right_and_none_is_a_dash() -> None:
    rows = [{"name": "a", "ms": "not measured", "x": None}, {"name": "c", "ms": 1.5, "x": "28x"}]
    assert markdown_table(rows) == "| name | ms | x |\n|---|---:|---:|\n| a | not measured | - |\n| c | 1.5 | 28x |\n"
