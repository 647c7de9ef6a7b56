"""The site: every page is in the navigation, every link leads somewhere, nothing is fetched from other sites.

And what pages say of the code holds: the architecture's floors and files, commands and names in tables.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt

import efficientdet
from efficientdet.cli import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


# Pages of the repository that people read there.
READ_IN_PLACE = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "BENCHMARKS.md", "CHANGELOG.md")
]
READ_IN_PLACE += [ROOT / "examples" / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's sources, as docs/generate.py puts them together."""
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.SITE = tmp_path_factory.mktemp("built") / "build" / "site"
    generate.main()
    return Path(generate.SITE)


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def broken_links(page: Path) -> list[str]:
    found = []
    for target, anchor in LINK.findall(prose(page)):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            found.append(f"{page}: {target}#{anchor}")
    return found


def test_every_page_is_in_the_navigation(site: Path) -> None:
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.md")}
    listed = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def test_every_link_within_the_site_leads_somewhere(site: Path) -> None:
    assert not [link for page in site.rglob("*.md") for link in broken_links(page)]


@pytest.mark.parametrize("page", READ_IN_PLACE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Title: of it\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md#title-of-it) [x](c.md) [x](b.md#other) `[x](code.md)` [x](https://x.org/y)")
    assert [link.rpartition(" ")[2] for link in broken_links(page)] == ["c.md#", "b.md#other"]


def test_the_reference_has_every_public_name_and_command(site: Path) -> None:
    names = {name for name in efficientdet.__all__ if not name.startswith("_")}
    modules = {name for name in names if (site / "reference" / f"{name}.md").exists()}
    page = (site / "reference" / "efficientdet.md").read_text(encoding="utf-8")
    assert modules >= {"boxes", "data", "errors", "family", "weights"}
    assert {name for name in names - modules if f"\n## {name}\n" not in page} == set()
    assert "\n| `max_detections` | `int` | `100` | Largest number of detections of an image. |" in page
    commands = (site / "reference" / "cli.md").read_text(encoding="utf-8")
    assert "## `efficientdet train`" in commands and "### `efficientdet data check`" in commands
    assert "- [Training](training.md): " in (site / "llms.txt").read_text(encoding="utf-8")


def test_the_site_is_built_and_fetches_nothing_from_others(site: Path) -> None:
    pytest.importorskip("zensical")
    root = site.parents[1]
    (root / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((root / "build" / "docs").rglob("*.html"))
    assert len(pages) > len(list(site.rglob("*.md"))) - 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=\"?([^\"\s>]+)", text)
        assert not [address for address in fetched if re.match(r"(https?:)?//", address)], page
        assert re.search(r'href="?(\.\./)*\.?/?index\.html', text) or 'href="."' in text, f"{page}: no way back"
    for file in (root / "build" / "docs").rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?https?:", file.read_text(encoding="utf-8")), file


INLINE = [
    (page, token.content)
    for page in [ROOT / "README.md", *(ROOT / "docs" / "from").glob("*.md")]
    for block in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    for token in block.children or ()
    if token.type == "code_inline"
]


def test_commands_and_names_in_tables_exist() -> None:
    """Blocks run as tests (test_code_blocks.py); what stands within lines is compared with the command line."""
    root = typer.main.get_command(app)
    for page, text in INLINE:
        for name in re.findall(r"\bed\.(\w+)", text):
            assert hasattr(efficientdet, name), f"{page}: {text}"
        if text.startswith("efficientdet "):
            command, words = root, shlex.split(text)[1:]
            while hasattr(command, "commands"):
                command, words = command.commands.get(words[0]), words[1:]
                assert command is not None, f"{page}: {text}"
                if not words:
                    break
            options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
            assert not {word for word in words if word.startswith("-")} - options - {"--help"}, f"{page}: {text}"


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
