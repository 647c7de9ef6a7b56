"""The notebook runs from top to bottom, learns something, and is kept without outputs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is missing (dependency group dev)")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = nbformat.read(ROOT / "examples" / "train_on_100_images.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


def has_tag(cell: nbformat.NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def test_the_notebook_is_kept_without_outputs() -> None:
    nbformat.validate(NOTEBOOK)
    assert len(CODE) > 5 and not [cell.source for cell in CODE if cell.outputs or cell.execution_count]


def test_the_notebook_installs_what_it_needs_and_opens_in_colab() -> None:
    (install,) = (cell.source for cell in CODE if has_tag(cell, "install"))
    assert install == "%pip install -q 'efficientdet[train,export]'"
    assert "](https://colab.research.google.com/github/" in NOTEBOOK.cells[0].source


@pytest.mark.slow
def test_the_notebook_trains_exports_and_finds_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for the epochs and for pip."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is missing (dependency group dev)")
    pytest.importorskip("ipykernel", reason="ipykernel is missing (dependency group dev)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cells = [cell for cell in nbformat.from_dict(NOTEBOOK).cells if not has_tag(cell, "install")]
    (parameters,) = (cell for cell in cells if has_tag(cell, "parameters"))
    assert re.fullmatch(r"EPOCHS = \d+", parameters.source)
    parameters.source = "EPOCHS = 4"
    notebook = nbformat.from_dict({**NOTEBOOK, "cells": cells})
    place = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=place).execute()
    printed = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", ()))
    ap = re.search(r"AP (\d\.\d+), AP50", printed)
    assert ap is not None and float(ap[1]) > 0.1, printed
    assert re.search(r"^(disc|square) 0\.\d+$", printed, re.MULTILINE), printed
    assert "image/png" in done.cells[-2].outputs[-1].data
    assert (tmp_path / "shapes.onnx").stat().st_size > 1_000_000
