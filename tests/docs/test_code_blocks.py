"""Every code block of the README and of docs/ runs as it stands, page by page.

A page's blocks run in their order, in a folder with the files that its reader would have: `photo.jpg`, `photos/`,
`clip.mp4`, `dataset/`, and a few images of `people/`, `cells/` and `microcontrollers/`. Python blocks of a page share
their names. `pip install` and `make` are checked for what they name. The README's commands are processes of their own;
those of other pages run in this one, which spares each the seconds in which torch is imported. And a stranger runs the
README's with the built wheel, in an environment of their own. Commands that train are
made short by `SHORTER`, a server runs until the end of its page, and a comment before a block says what else is to be
done with it:

    <!-- test: slow -->               run by `pytest -m slow` alone; so must be what builds upon it
    <!-- test: file graph.yaml -->    not run: written to that file
    <!-- test: skip because ... -->   not run: the reason is printed with the skipped tests
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt

import efficientdet
from efficientdet import cli
from efficientdet.images.find import sample_image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# What makes commands that train short, put after their own options.
SHORTER = {
    "train": "--epochs 1 --image-size 64 --batch-size 2 --device cpu --precision fp32",
    "tune": "--epochs 1 --image-size 64 --batch-size 2 --device cpu --precision fp32 --learning-rate 0.01",
    "ablate": "--epochs 1 --image-size 64 --seeds 1 --device cpu --feature-networks bifpn,fpn --fusions fast",
}
# Of the page that is read: they run until its end.
SERVERS: list[subprocess.Popen[str]] = []
# Images of each split that are copied from a shared dataset, into a folder of its name.
SHARED = {"people": 24, "cells": 6, "microcontrollers": 6}


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    orders: tuple[str, ...]

    @property
    def is_slow(self) -> bool:
        return "slow" in self.orders

    def order(self, word: str) -> str | None:
        """What follows a word in the comments before the block."""
        return next((order.removeprefix(f"{word} ") for order in self.orders if order.startswith(f"{word} ")), None)


def read_blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page of markdown, with the comments that precede each."""
    orders: list[str] = []
    for token in MarkdownIt().parse(text):
        if token.type == "html_block":
            orders += re.findall(r"<!-- test: (.*?) -->", token.content, re.DOTALL)
        elif token.type in ("fence", "code_block") and token.map is not None:
            yield Block(token.info.strip(), token.content, token.map[0] + 1, tuple(orders))
            orders = []
    assert not orders, f"no block follows these comments: {orders}"


def read_commands(text: str) -> list[list[str]]:
    """The commands of a block of shell, one a line, without its comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


BLOCKS = {page: list(read_blocks(page.read_text(encoding="utf-8"))) for page in PAGES}
SLOW_PAGES = [page for page in PAGES if any(block.is_slow for block in BLOCKS[page])]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def reader(
    tmp_path: Path, shapes: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Someone who has the files that pages speak of, in the current folder; called with a block to prepare for it."""
    shutil.copy(sample_image(), tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    for number in (1, 2):
        shutil.copy(sample_image(), tmp_path / "photos" / f"{number}.jpg")
    shapes.write_shapes(tmp_path / "dataset", {"train": 4, "val": 2, "test": 2})
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(efficientdet, "train", shortened(efficientdet.train))

    def prepare(text: str) -> None:
        for name, count in SHARED.items():
            if f"{name}/" in text and not (tmp_path / name).exists():
                copy_images(request.getfixturevalue("shared_data") / name, tmp_path / name, count)
        if "clip.mp4" in text and not (tmp_path / "clip.mp4").exists():
            pytest.importorskip("trackers", reason="PyAV or trackers is missing (efficientdet[video])")
            run_command(["python", "examples/moving_portraits.py", "clip.mp4"])
        if "--ray" in text or "on_ray" in text:
            pytest.importorskip("ray", reason="ray is missing (extra ray)")
        for file in re.findall(r"[\w-]+\.npz", text):
            shutil.copy(request.getfixturevalue("shared_data") / "weights" / file, tmp_path)

    yield prepare
    while SERVERS:
        with SERVERS.pop() as server:
            server.terminate()


def shortened(train: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(train)
    def run(*arguments: Any, **settings: Any) -> Any:
        few = {"epochs": 1, "image_size": 64, "batch_size": 2, "device": "cpu", "precision": "fp32", "quiet": True}
        return train(*arguments, **settings | few)

    return run


def copy_images(source: Path, target: Path, count: int) -> None:
    """The first images of each split, with their boxes."""
    (target / "images").mkdir(parents=True)
    for file in source.glob("*.json"):
        content = json.loads(file.read_text())
        content["images"] = content["images"][:count]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
        (target / file.name).write_text(json.dumps(content))
        for image in content["images"]:
            shutil.copy(source / "images" / image["file_name"], target / "images")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page(page: Path, reader: Callable[[str], None], subtests: pytest.Subtests) -> None:
    run_blocks(page, [block for block in BLOCKS[page] if not block.is_slow], reader, subtests)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES, ids=name_of)
def test_page_with_its_slow_blocks(page: Path, reader: Callable[[str], None], subtests: pytest.Subtests) -> None:
    run_blocks(page, BLOCKS[page], reader, subtests)


def run_blocks(page: Path, blocks: list[Block], reader: Callable[[str], None], subtests: pytest.Subtests) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks:
        place = f"{name_of(page)}:{block.line}"
        with subtests.test(place):
            if reason := block.order("skip"):
                pytest.skip(f"{place} {reason}")
            if file := block.order("file"):
                Path(file).write_text(block.text, encoding="utf-8")
                continue
            reader(block.text)
            if block.language == "python":
                exec(compile("\n" * block.line + block.text, page, "exec"), names)
            elif block.language == "sh":
                for command in read_commands(block.text):
                    # Ray warns, of its own code, in the process that calls it.
                    run_command(command, in_process=page.name != "README.md" and "--ray" not in command)
            else:
                pytest.fail(f"{place}: a block of '{block.language}' needs a comment that says what to do with it")


@pytest.mark.slow
def test_the_readme_with_the_wheel_in_an_empty_environment(
    reader: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone with Python only: pip installs the built wheel with what the README names, and its blocks follow."""
    pytest.importorskip("hatchling", reason="hatchling is missing (dependency group dev)")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "wheel")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    for name in ("PYTHONPATH", "EFFICIENTDET_BACKEND", "EFFICIENTDET_KEEP_MEMORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EFFICIENTDET_CACHE", str(tmp_path / "cache"))
    pip = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    for block in BLOCKS[ROOT / "README.md"]:
        if block.language == "python":
            Path("block.py").write_text(block.text, encoding="utf-8")
            run_command(["python", "block.py"], python=python)
            continue
        for command in read_commands(block.text):
            if command[:2] == ["pip", "install"]:
                wanted = [requirement.replace("efficientdet", str(wheel), 1) for requirement in command[2:]]
                subprocess.run([*pip, *wanted], check=True)
            elif command[0] != "make":  # which needs a clone
                if "clip.mp4" in command:
                    run_command(["python", "examples/moving_portraits.py", "clip.mp4"], python=python)
                reader(" ".join(command))
                run_command(command, python=python)
    subprocess.run([python, "-m", "pip", "check"], check=True)


def run_command(words: list[str], in_process: bool = False, python: Path = Path(sys.executable)) -> None:
    """Run a command of an environment, or check what it names where it would change the environment."""
    program, *arguments = words
    if program in ("pip", "make", "git") or program.startswith(".venv/"):
        check_form(words)
        return
    if words[:2] == ["efficientdet", "serve"]:
        start_server(arguments, python)
        return
    if program == "efficientdet":
        arguments += shlex.split(SHORTER.get(arguments[0], ""))
        if in_process:
            run_in_this_process(arguments)
            return
        script = python.with_name("efficientdet")
        start = [str(script)] if script.exists() else [str(python), "-m", "efficientdet"]
    else:
        assert program in ("python", "curl"), f"unknown program in {words}"
        start = [str(python)] if program == "python" else ["curl", "--fail-with-body", "--silent", "--show-error"]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run([*start, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def start_server(arguments: list[str], python: Path) -> None:
    """Start `efficientdet serve`, and wait until it takes requests."""
    if python == Path(sys.executable):
        pytest.importorskip("fastapi", reason="fastapi is missing (extra serve)")
    command = [str(python), "-m", "efficientdet", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    SERVERS.append(server)
    assert server.stdout is not None and "http://" in server.stdout.readline(), shlex.join(arguments)


def run_in_this_process(arguments: list[str]) -> None:
    """Run `efficientdet ...` as the console script does; what it prints is shown by pytest where it fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["efficientdet", *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, f"efficientdet {shlex.join(arguments)}: exit code {stop.code}"


def check_form(words: list[str]) -> None:
    """What a command installs or makes is there to be installed or made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), words
    elif words[:2] == ["pip", "install"]:
        for requirement in words[2:]:
            name, extras = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
            assert name == "efficientdet" or extras is None, words
            assert set((extras or "all").split(",")) <= set(project["project"]["optional-dependencies"]), words
    elif words[0].startswith(".venv/"):
        tools = [re.split(r"[>=!]", tool)[0] for tool in project["dependency-groups"]["dev"] if isinstance(tool, str)]
        assert Path(words[0]).name in tools, words
    else:
        pytest.fail(f"nothing checks {words}")


# Of the test itself


def test_blocks_are_read_with_the_comments_before_them() -> None:
    orders = "<!-- test: slow -->\n<!-- test: skip because of rain -->\n"
    text = orders + "```sh\nls\n```\n\n1. One\n\n   ```python\n   x = 1\n   ```\n"
    assert list(read_blocks(text)) == [
        Block("sh", "ls\n", 3, ("slow", "skip because of rain")),
        Block("python", "x = 1\n", 9, ()),
    ]


def test_commands_are_read_over_lines_and_past_comments() -> None:
    text = "# first\nefficientdet predict 'my photos' \\\n    --json   # all\n\nmake demo\n"
    assert read_commands(text) == [["efficientdet", "predict", "my photos", "--json"], ["make", "demo"]]


@pytest.mark.parametrize(
    "line",
    [
        "pip install 'efficientdet[camera]'", "pip install 'torch[all]'", "make tests", "git clone x",
        ".venv/bin/flake8", "efficientdet predict missing.jpg", "ls",
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_fails(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_command(shlex.split(line))
