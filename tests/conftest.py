"""Fixtures for every test: where the data and the golden numbers lie that are not part of the repository."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

# It is not the time that is tested.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
# Building another engine for each of many small networks would take most of the tests' time. Tests of the others name
# them; processes that tests start inherit this.
os.environ["EFFICIENTDET_BACKEND"] = "eager"
# Many trainings in one process, beside others: it should give its memory back.
os.environ["EFFICIENTDET_KEEP_MEMORY"] = "0"
# Folders whose files take longest. They begin first: otherwise one process ends with them while the others wait.
LONGEST = ("end_to_end", "docs", "training", "exporting")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; `--dist loadfile --no-loadscope-reorder` hands files out in this order."""
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)


def _shared_folder(name: str) -> Path:
    """A folder of shared material beside the checkout or under $EFFICIENTDET_SHARED; skips where absent."""
    beside_checkout = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("EFFICIENTDET_SHARED", beside_checkout)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set EFFICIENTDET_SHARED to the folder that holds '{name}'")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data sets, odd pictures and evaluator fixtures."""
    return _shared_folder("data")


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """Folder of golden numbers from the reference implementation."""
    return _shared_folder("parity")


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shapes() -> ModuleType:
    """The maker of tiny data sets, and a network small enough for them."""
    return _module("shapes")


@pytest.fixture(scope="session")
def checkpoint(shapes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt nothing."""
    import torch

    from efficientdet.weights.checkpoint import save_checkpoint
    from efficientdet.weights.create import create_model
    from efficientdet.weights.info import CheckpointInfo, default_preprocessing

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    info = CheckpointInfo(shapes.LITE, ("disc", "square"), (3, 7), default_preprocessing(shapes.LITE))
    save_checkpoint(path, create_model(shapes.LITE, 2).state_dict(), info)
    return path


@pytest.fixture(scope="session")
def clips() -> ModuleType:
    """The maker of tiny videos."""
    return _module("clips")


# Text that is cut off, or reaches beyond the screen; and a page that is wider than it.
FIND_CUT_TEXT = """() => {
    const found = [], width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) found.push("the page is wider than the screen");
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const parent = node.parentElement, style = getComputedStyle(parent);
        if (!node.data.trim() || parent.closest("style, .skip, thead, title") || !parent.checkVisibility()) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const box of range.getClientRects()) {
            if (box.left < -1 || box.right > width + 1) found.push(`beyond the screen: ${node.data.trim()}`);
        }
        if (style.overflowX !== "visible" && parent.scrollWidth > parent.clientWidth + 1) {
            found.push(`cut off: ${node.data.trim()}`);
        }
    }
    return found;
}"""


@pytest.fixture(scope="session")
def find_cut_text() -> str:
    """A function of JavaScript that lists the text of a page that is cut off."""
    return FIND_CUT_TEXT


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser without a window; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing (dependency group dev)")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is missing; install it with the system's packages")
    with playwright.sync_playwright() as running:
        fake_camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox", *fake_camera])
        yield browser
        browser.close()


@pytest.fixture
def look_at(chromium: Any, tmp_path: Path) -> Callable[..., list[str]]:
    """Opens an HTML file at a width, light or dark; returns what is wrong with it.

    Script errors, requests, text that is cut off, and what axe (axe-core, Deque) finds that keeps people out.

    A screenshot is kept in the test's folder, as `WIDTH-SCHEME.png`.
    """

    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing (dependency group dev)")

    def look(path: Path, width: int, scheme: str = "light") -> list[str]:
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        problems: list[str] = []
        page.set_default_timeout(600_000)  # it is not the time that is tested
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on("console", lambda line: problems.append(f"{line.type}: {line.text}") if line.type == "error" else None)
        page.on("request", lambda request: problems.append(f"request: {request.url}"))
        page.goto(path.as_uri())
        problems = [one for one in problems if one != f"request: {path.as_uri()}" and "request: data:" not in one]
        problems += page.evaluate(FIND_CUT_TEXT)
        for rule in axe.Axe().run(page).response["violations"]:
            problems += [f"{rule['id']}: {rule['help']}: {node['html'][:200]}" for node in rule["nodes"]]
        page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
        page.close()
        return problems

    return look


@pytest.fixture
def look_at_states(find_cut_text: str, tmp_path: Path) -> Callable[[Any, Callable[[Any], object]], None]:
    """Look at the page that detects, empty, filled and after a bad file: nothing is cut off, and axe finds no fault."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing (dependency group dev)")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}

    def look(page: Any, show: Callable[[Any], object]) -> None:
        from playwright.sync_api import expect

        for state in ("empty", "filled", "failed"):
            if state == "filled":
                show(page)
            if state == "failed":
                page.locator("#file").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"x"})
                expect(page.get_by_role("alert")).to_be_visible()
            assert page.evaluate(find_cut_text) == []
            found = axe.Axe().run(page, options=rules)
            assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []
            page.screenshot(path=tmp_path / f"{state}.png", full_page=True)

    return look
