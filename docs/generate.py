"""Put the site's sources together in build/site: docs/, pages made from the code, and the repository's own pages.

`make docs` runs this before zensical; with `--strict` it fails where the live demo (live_demo.py) cannot be built.
The reference is made from the docstrings (griffe, which imports nothing) and from `--help` (typer), so that neither
can fall behind the code. Links are rewritten, so that those of the repository work both there and on the site.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
# Pages of the repository that are pages of the site too.
MOVED = {
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "benchmarks/README.md": "measuring.md",
}
# Modules whose names are public beside those of the package itself.
MODULES = ("boxes", "data", "errors", "family", "weights")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s:]+)((?:#[^)]*)?\))")
TITLES = {
    "parameters": "Arguments",
    "attributes": "Attributes",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
}


def main() -> None:
    """Write build/site anew."""
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SITE, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT).as_posix()
        write(name.removeprefix("docs/"), rewritten(page.read_text(encoding="utf-8"), name))
    for source, target in MOVED.items():
        write(target, rewritten((ROOT / source).read_text(encoding="utf-8"), source))
    write("reference/cli.md", command_line())
    package = griffe.load("efficientdet", search_paths=[ROOT / "src"], docstring_parser="google")
    assert isinstance(package, griffe.Module)
    for name in ("", *MODULES):
        write(f"reference/{name or 'efficientdet'}.md", module_page(package, name))
    write("llms.txt", llms_text())


def write(name: str, text: str) -> None:
    """Write a page, or another file, of the site."""
    file = SITE / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.strip() + "\n", encoding="utf-8")


def rewritten(text: str, source: str) -> str:
    """A page's text with links that hold on the site; other files of the repository are copied, or named."""
    page = MOVED.get(source, source.removeprefix("docs/"))

    def relink(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), link[2])).replace(os.sep, "/")
        if target in MOVED:
            found = MOVED[target]
        elif target.startswith("docs/"):
            found = target.removeprefix("docs/")
        elif (ROOT / target).suffix in (".jpg", ".png", ".svg", ".ipynb"):
            found = f"assets/{target}"
            (SITE / found).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / target, SITE / found)
        else:  # a file to look at in the repository
            return f"`{target}`"
        return link[1] + os.path.relpath(found, os.path.dirname(page) or ".").replace(os.sep, "/") + link[3]

    return LINK.sub(relink, text)


def command_line() -> str:
    """Every command's `--help`."""
    command = [sys.executable, "-m", "typer", "efficientdet.cli", "utils", "docs", "--name", "efficientdet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    text = done.stdout.replace("# `efficientdet`\n", "# Command line\n", 1).replace("```console\n$ ", "```text\n")
    return re.sub(r" *\[default: ([^\]]*)\]", r" Default: `\1`.", text)


def module_page(package: griffe.Module, name: str) -> str:
    """The public names of a module, from its docstrings."""
    module = package[name] if name else package
    title = f"efficientdet.{name}" if name else "efficientdet"
    parts = [f"# {title}", text_of(module)]
    for member in public_members(module):
        parts += [f"## {member.name}", *describe(member)]
        if member.is_class:
            for method in member.members.values():
                if method.is_function and not method.name.startswith("_") and method.has_docstring:
                    parts += [f"### {member.name}.{method.name}", *describe(method)]
    return "\n\n".join(part for part in parts if part)


def public_members(module: griffe.Module) -> Iterator[griffe.Object]:
    """What a module exports; without `__all__`, what it defines itself. Names without a docstring are left out."""
    for name in module.exports or [name for name in module.members if not name.startswith("_")]:
        member = module.members.get(str(name))
        if isinstance(member, griffe.Alias):
            if not module.exports:
                continue
            member = member.final_target
        if member is not None and not member.is_module and member.has_docstring:
            yield member


def describe(member: griffe.Object) -> Iterator[str]:
    """Signature, text, arguments, errors and settings of a class or function."""
    settings = settings_of(member)
    shown = member.members.get("__init__", member) if member.is_class else member
    if isinstance(shown, griffe.Function) and not settings:
        returns = f" -> {shown.annotation}" if shown.annotation and not member.is_class else ""
        yield f"```text\n{member.name}({', '.join(parameters(shown))}){returns}\n```"
    yield text_of(member)
    if shown is not member and not settings:
        yield text_of(shown).partition("\n\n")[2]  # its arguments; the class says what it is
    yield settings


def parameters(function: griffe.Function) -> Iterator[str]:
    """A function's parameters as they are written."""
    starred = False
    for one in function.parameters:
        if one.name in ("self", "cls"):
            continue
        kind = str(one.kind)
        if "keyword-only" in kind and not starred:
            yield "*"
            starred = True
        stars = "**" if "variadic keyword" in kind else "*" if "variadic" in kind else ""
        starred |= stars == "*"
        annotation = f": {one.annotation}" if one.annotation is not None else ""
        default = f" = {one.default}" if one.default is not None and not stars else ""
        yield f"{stars}{one.name}{annotation}{default}"


def text_of(member: griffe.Object) -> str:
    """A docstring as markdown."""
    parts = []
    for section in member.docstring.parse("google", warnings=False) if member.docstring else ():
        kind = section.kind.value
        if kind in TITLES:
            items = [heading(item) + " ".join(item.description.split()) for item in section.value]
            text = " ".join(items) if kind in ("returns", "yields") else "\n".join(f"- {item}" for item in items)
            parts.append(f"**{TITLES[kind]}**\n\n{text}")
        else:
            parts.append(section.value)
    return "\n\n".join(map(str, parts))


def heading(item: griffe.DocstringElement) -> str:
    """`name`: before a description; of an error, its type."""
    name = getattr(item, "name", "") or (str(item.annotation) if isinstance(item, griffe.DocstringRaise) else "")
    return f"`{name}`: " if name else ""


def settings_of(member: griffe.Object) -> str:
    """The settings that a dataclass declares, as a table; empty for anything else."""
    rows = []
    for field in member.members.values() if member.is_class else ():
        call = field.value if isinstance(field, griffe.Attribute) else None
        if isinstance(call, griffe.ExprCall) and str(call.function) == "setting":
            default, text = map(str, call.arguments[:2])
            cells = f"`{field.name}`", f"`{field.annotation}`", f"`{default}`", ast.literal_eval(text)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(["| setting | type | default | |", "|---|---|---|---|", *rows]) if rows else ""


def llms_text() -> str:
    """The pages with their first sentences, for language models (llmstxt.org)."""
    lines = ["# efficientdet", "", f"> {sentence_of(SITE / 'index.md')}", "", "## Pages", ""]
    for page in sorted(SITE.rglob("*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({page.relative_to(SITE).as_posix()}): {sentence_of(page)}")
    return "\n".join(lines)


def sentence_of(page: Path) -> str:
    """The first sentence of a page's first paragraph of prose."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = [part for part in text.split("\n\n") if part.strip() and not re.match(r"\s*[#|!*>-]", part)]
    first = " ".join(prose[0].split()) if prose else ""
    return re.split(r"(?<=\.) ", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", first))[0]


if __name__ == "__main__":
    main()
    import live_demo  # it needs torch and onnx, and no test of the pages needs it

    if missing := live_demo.build(SITE):
        print(f"The live demo is left out: {missing}", file=sys.stderr)
        sys.exit("--strict" in sys.argv)
