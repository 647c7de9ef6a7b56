"""The site: mkdocs.yml lists every page, and the page on the architecture says what the code is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def test_the_floors_are_those_that_import_linter_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    held = [{part.strip(" ()") for part in layer.split(":")} for layer in contract["layers"]]
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", ARCHITECTURE, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", parts)) for _, parts in rows] == held
    assert [int(number) for number, _ in rows] == list(range(len(held), 0, -1))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", ARCHITECTURE))))
def test_a_file_that_is_named_is_there(name: str) -> None:
    """As a path, or, after one, by its name alone."""
    package = ROOT / "src" / "efficientdet"
    assert (package / name).exists() or ("/" not in name and list(package.rglob(name))) or (ROOT / name).exists()
