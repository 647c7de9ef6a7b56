"""What is in the wheel: the package with its types and weights, and nothing that only developers need."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from efficientdet import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_has_types_weights_and_license_and_no_tools(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"efficientdet-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        (metadata,) = (opened.read(name).decode() for name in names if name.endswith("/METADATA"))
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert sources <= set(names)
    assert {f"efficientdet/{name}" for name in ("py.typed", "html_page.html")} <= set(names)
    assert {f"efficientdet/weights/bundled/{name}.safetensors" for name in ("people", "cells")} <= set(names)
    assert {name.split("/")[0] for name in names} == {"efficientdet", f"efficientdet-{__version__}.dist-info"}
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    tools = ("zensical", "griffe", "pytest", "playwright", "nbclient")
    assert needed and not [line for line in needed if any(tool in line for tool in tools)]
