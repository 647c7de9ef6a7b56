"""YAML from outside: what is refused, and where it stands."""

from __future__ import annotations

import pytest

from efficientdet.yaml_text import LONGEST, parse_yaml


def test_values_and_their_lines() -> None:
    values, root = parse_yaml("a: 1\nb: [x, 2.5, null]\n")
    assert values == {"a": 1, "b": ["x", 2.5, None]}
    assert [key.start_mark.line for key, _ in root.value] == [0, 1]
    assert parse_yaml("") == (None, None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: &a [x]\nb: *a", "aliases .* line 2"),
        ("a: 1\na: 2", "the key 'a' is there twice.* line 2"),
        ("? [a]\n: 1", "unhashable"),
        ("a: !!python/object/apply:os.getcwd []", "python/object/apply"),
        ("a: [", "line 1"),
        ("--- 1\n--- 2", "single document"),
        ("a: 2001-02-30", "day is out of range"),
        ("a: \x00", "special characters"),
        ("[" * 3000, "recursion"),
        ("x" * (LONGEST + 1), "1,000,001 characters; at most 1,000,000"),
    ],
)
def test_a_fault_is_a_value_error_of_one_line(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400
