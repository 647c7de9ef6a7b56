"""The README is short, and each figure of its table stands in the page that it is taken from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


class Source(NamedTuple):
    """Where a row of the README has its figures from: of one table, a row for each cell, a column, a unit."""

    heading: str
    rows: tuple[str, ...]
    column: str
    unit: float = 1.0
    page: str = "BENCHMARKS.md"


FP32, INT8 = "From a 640x480 JPEG to boxes, d0, 512 px, 90 classes, fp32", "d0, 512 px, 90 classes, bf16 and int8"
STEP, STEPS = "Training step, d0, 512 px, batch 4", ("efficientdet bf16, channels_last", "effdet fp32, channels_last")
RECIPES = ("the same, GIoU loss: `--recipe modern`", "a script around effdet 0.4.1 (`benchmarks/race_peer.py`)")
SOURCES = {
    "AP of `people` on 150 images": Source(
        "AP of `people` on its validation split", ("efficientdet auto", "effdet channels_last"), "AP"
    ),
    "AP after 20 epochs on 100 images of blood cells": Source("Recipes", RECIPES, "AP", page="docs/training.md"),
    "JPEG to boxes, d0, fp32": Source(FP32, ("efficientdet auto (openvino fp32)", "effdet channels_last"), "total, ms"),
    "JPEG to boxes, d0, int8": Source(
        INT8, ("efficientdet openvino int8 (openvino int8)", "effdet channels_last"), "total, ms"
    ),
    "pixels to boxes on an NVIDIA H100, d0, fp16": Source(
        "On a GPU", ("efficientdet compile fp16", "effdet fp16 NHWC"), "d0 x 1"
    ),
    "soft NMS of 49,104 anchors, 90 classes": Source(
        "Post-processing of 49,104 anchors x 90 classes", ("efficientdet soft, scores >= 0.05", "effdet soft"), "ms"
    ),
    "a training step, d0, 4 images": Source(STEP, STEPS, "ms a step", 1 / 1000),
    "its peak memory": Source(STEP, STEPS, "peak memory, MiB", 1 / 1024),
}
# The comparison in the last cell: the median and range of the rounds.
RATIOS = {
    "JPEG to boxes, d0, fp32": (FP32, "efficientdet auto : effdet channels_last"),
    "JPEG to boxes, d0, int8": (INT8, "efficientdet openvino int8 : effdet channels_last"),
}
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.partition("## Why this one")[2].partition("\n## ")[0].splitlines()
    if re.match(r"\|.*\d", line)
]


def find_cell(page: str, heading: str, row: str, column: str) -> str:
    """A cell of a table below a heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"{page} has no heading '{heading}'"
    header: list[str] = []
    for line in section[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif cells[0] == row and column in header:
            return cells[header.index(column)]
    raise AssertionError(f"{page}, {heading}: no row '{row}' with a column '{column}'")


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", text)


def as_shown(measured: str, shown: str, unit: float = 1.0) -> str:
    """A measured figure with as many decimals as are shown."""
    return f"{float(measured) * unit:.{len(shown.partition('.')[2])}f}"


def test_every_row_of_the_table_has_its_source() -> None:
    assert [row[0] for row in TABLE] == list(SOURCES)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_figures_are_those_of_their_source(row: list[str]) -> None:
    source = SOURCES[row[0]]
    for cell, side in zip(row[1:3], source.rows, strict=True):
        (shown,) = numbers(cell)
        measured = numbers(find_cell(source.page, source.heading, side, source.column))[0]
        assert shown == as_shown(measured, shown, source.unit), f"{side}: {cell} in README.md, {measured} measured"


@pytest.mark.parametrize("row", [row for row in TABLE if " times" in row[3]], ids=lambda row: row[0])
def test_how_much_faster_is_the_median_and_range_of_the_rounds(row: list[str]) -> None:
    heading, sides = RATIOS[row[0]]
    measured = numbers(find_cell("BENCHMARKS.md", heading, sides, "median of rounds"))
    said = re.search(r"(\d[\d.]*) times.*?\((\d[\d.]*) to (\d[\d.]*)", row[3])
    assert said is not None and len(measured) == 3
    assert list(said.groups()) == [as_shown(one, shown) for one, shown in zip(measured, said.groups(), strict=True)]


def test_a_figure_that_has_drifted_is_found() -> None:
    with pytest.raises(AssertionError, match="0.999 in README.md, 0.2891 measured"):
        test_the_figures_are_those_of_their_source(["AP of `people` on 150 images", "0.999", "0.289", ""])


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150
