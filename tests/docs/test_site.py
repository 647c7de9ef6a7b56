"""The site: every page is in the navigation, every link leads somewhere, nothing is fetched from other sites.

And what pages say of the code holds: the architecture's floors and files, commands and names in tables.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from defusedxml import ElementTree
from markdown_it import MarkdownIt

import efficientdet
from efficientdet.cli import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "assets" / "architecture.svg").read_text(encoding="utf-8")

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
    assert "\n* `check`: " in commands and not re.search(r"^\* `\w+`: .*\.\.\.$", commands, re.MULTILINE)
    assert "- [Training](training.md): " in (site / "llms.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(site: Path) -> Path:
    """The site as zensical builds it."""
    pytest.importorskip("zensical")
    root = site.parents[1]
    (root / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "build" / "docs"


def test_built_pages_fetch_nothing_from_others_and_lead_back(site: Path, built: Path) -> None:
    pages = sorted(built.rglob("*.html"))
    assert len(pages) > len(list(site.rglob("*.md"))) - 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=\"?([^\"\s>]+)", text)
        assert not [address for address in fetched if re.match(r"(https?:)?//", address)], page
        assert re.search(r'href="?(\.\./)*\.?/?index\.html', text) or 'href="."' in text, f"{page}: no way back"
    for file in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?https?:", file.read_text(encoding="utf-8")), file


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    """The site on a server."""
    handler = functools.partial(QuietHandler, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everyone_can_use_every_built_page(
    width: int, scheme: str, built: Path, address: str, chromium: Any, tmp_path: Path
) -> None:
    """Nothing that axe finds at levels A and AA, no error, no request elsewhere, not wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing (dependency group dev)")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(600_000)  # it is not the time that is tested
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on("console", lambda line: problems.append(f"{line.type}: {line.text}") if line.type == "error" else None)
    own = (address, "data:", "blob:")
    page.on("request", lambda one: problems.append(one.url) if not one.url.startswith(own) else None)
    for name in sorted(file.relative_to(built).as_posix() for file in built.rglob("*.html")):
        page.goto(address + name)
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            problems.append("wider than the screen")
        for rule in axe.Axe().run(page, options=rules).response["violations"]:
            problems += [f"{rule['id']}: {rule['help']}: {node['html'][:200]}" for node in rule["nodes"]]
        page.screenshot(path=tmp_path / f"{width}-{scheme}-{name.replace('/', '-')}.png")
        assert problems == [], name
    page.close()


@pytest.mark.slow
def test_the_search_needs_no_server(built: Path, chromium: Any) -> None:
    page = chromium.new_page()
    requests: list[str] = []
    page.on("request", lambda one: requests.append(one.url))
    page.goto((built / "from" / "index.html").as_uri())
    page.set_default_timeout(600_000)
    page.locator("body").press("/")
    page.get_by_placeholder("Search").last.fill("letterbox")
    page.get_by_text("A prediction, in six files").wait_for()
    assert [url for url in requests if not url.startswith((f"{built.as_uri()}/", "data:", "blob:", "about:"))] == []
    page.close()


@pytest.mark.parametrize("file", sorted((ROOT / "docs").rglob("*.svg")), ids=lambda file: file.name)
def test_a_drawing_can_be_shown_and_fetches_nothing(file: Path) -> None:
    ElementTree.parse(file)
    assert not re.search(r"(url\(|href=)[\"']?(https?:)?//", file.read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("name", sorted(set(re.findall(r"[`>]([\w/]+\.py|[\w/]+/)[`<]", ARCHITECTURE + PICTURE))))
def test_a_file_that_is_named_is_there(name: str) -> None:
    """As a path, or, after one, by its name alone."""
    package = ROOT / "src" / "efficientdet"
    assert (package / name).exists() or ("/" not in name and list(package.rglob(name))) or (ROOT / name).exists()
