"""The floors of docs/architecture.md: lower parts know nothing of higher ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_floors_hold() -> None:
    pytest.importorskip("importlinter", reason="import-linter is missing (dependency group dev)")
    program = "from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", program, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_network_can_be_lifted_out() -> None:
    program = (
        "import sys, efficientdet.network.efficientdet\n"
        "print(*sorted({name.split('.')[1] for name in sys.modules if name.startswith('efficientdet.')}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {
        "network",
        "boxes",
        "family",
        "errors",
        "settings",
        "text",
        "version",
        "yaml_text",
    }
