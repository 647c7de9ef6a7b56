"""The package's face: what it lists, that it is lazy, and that type checkers see the same as Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import efficientdet


def test_import_costs_nothing() -> None:
    program = (
        "import sys, efficientdet; dir(efficientdet); efficientdet.__version__\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'rich', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", efficientdet.__all__)
def test_every_listed_name_is_there(name: str) -> None:
    assert getattr(efficientdet, name) is not None
    assert name in dir(efficientdet)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'efficientdet' has no attribute 'lode'"):
        efficientdet.lode  # noqa: B018


def test_the_list_is_what_the_modules_give() -> None:
    fetched = {*efficientdet._HOMES, *efficientdet._SUBMODULES, "__version__"}
    assert sorted(fetched) == list(efficientdet.__all__)


def test_type_checkers_see_the_same_homes() -> None:
    tree = ast.parse(Path(efficientdet.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    submodules = dict.fromkeys(efficientdet._SUBMODULES, "efficientdet")
    assert seen == efficientdet._HOMES | submodules


def test_the_version_is_the_installed_one() -> None:
    assert version("efficientdet") == efficientdet.__version__
