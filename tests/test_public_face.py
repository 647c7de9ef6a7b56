"""The package's face: what it lists, that it is lazy, and that type checkers see the same as Python."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import efficientdet

# What takes long to import, or is not installed everywhere.
HEAVY = (
    "torch", "numpy", "PIL", "safetensors", "huggingface_hub", "yaml", "lightning", "tensorboard", "faster_coco_eval",
    "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "simplejpeg", "h5py", "tensorflow", "matplotlib",
    "supervision", "fastapi", "uvicorn", "prometheus_client", "av", "trackers", "cv2", "ray", "pyarrow",
)  # fmt: skip


def heavy_after(program: str) -> list[str]:
    """The heavy libraries that a new process has imported after a program."""
    program += f"\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stderr.split()


def test_heavy_imports_are_seen() -> None:
    assert "numpy" in heavy_after("import efficientdet; efficientdet.Detections")


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert heavy_after("import efficientdet; dir(efficientdet); efficientdet.__version__") == []


def test_the_help_of_every_command_imports_nothing_heavy() -> None:
    program = """
import sys
from efficientdet import cli
commands = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
groups = [
    [group.name, command.name or command.callback.__name__]
    for group in cli.app.registered_groups
    for command in group.typer_instance.registered_commands
]
assert ["data", "convert"] in groups
for words in ([], *([command] for command in commands), *groups):
    sys.argv = ["efficientdet", *words, "--help"]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code
"""
    assert heavy_after(program) == []


@pytest.mark.parametrize("name", efficientdet.__all__)
def test_every_listed_name_is_there(name: str) -> None:
    assert getattr(efficientdet, name) is not None
    assert name in dir(efficientdet)


def test_what_public_functions_return_is_public_too() -> None:
    functions = [getattr(efficientdet, name) for name in efficientdet.__all__]
    returned = {str(one.__annotations__["return"]) for one in functions if inspect.isfunction(one)}
    assert {"Detector", "Records", "Metrics", "ParityReport"} <= returned
    classes = {name for text in returned for name in re.findall(r"\b[A-Z]\w+", text)} - {"Any", "Path"}
    assert classes <= set(efficientdet.__all__)


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
