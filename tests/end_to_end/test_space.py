"""The app for Hugging Face Spaces finds the person in a portrait (Gradio, which is large, is played)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from efficientdet.images.find import sample_image

APP = Path(__file__).resolve().parents[2] / "examples" / "space" / "app.py"


def test_the_app_draws_and_lists_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    def part(*_: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(**options)

    def interface(work: Any, inputs: list[Any], outputs: list[Any], **_: Any) -> None:
        shown.append((work, inputs, outputs))

    gradio = SimpleNamespace(Image=part, Slider=part, Dataframe=part, Interface=interface)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    runpy.run_path(str(APP), run_name="space")
    ((work, inputs, outputs),) = shown
    with Image.open(sample_image()) as portrait:
        drawn, rows = work(portrait, 0.3)
    assert drawn.size == portrait.size and len(inputs) == 2
    assert rows[0][0] == "person" and float(rows[0][1]) > 0.3
    assert len(rows[0]) == len(outputs[1].headers)
