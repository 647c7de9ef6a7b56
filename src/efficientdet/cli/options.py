"""What the commands share: the application, its consoles, common options, and the ways of printing and writing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

app = typer.Typer(
    help="EfficientDet: detect objects in pictures, and train detectors of your own.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
)  # fmt: skip
# In a file or a pipe there is no edge to wrap at.
out_console = Console(width=None if sys.stdout.isatty() else 160)
error_console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps; auto takes a GPU where there is one.")]
Size = Annotated[int | None, typer.Option(help="Side of the square input in pixels; default the model's own.")]
Nms = Annotated[str, typer.Option(help="hard, soft, matrix or wbf.")]
Candidates = Annotated[str, typer.Option(help="pairs, or argmax: each anchor for its best class alone.")]
Preprocess = Annotated[str | None, typer.Option(help="official or effdet; default the checkpoint's.")]
Anchors = Annotated[str | None, typer.Option(help="Aspects: rounded or exact; default the checkpoint's.")]
Backend = Annotated[str, typer.Option(help="eager, compile, onnxruntime, openvino, tensorrt; auto: the best here.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16; fp16 on a GPU.")]
Rectangular = Annotated[
    bool, typer.Option("--rectangular", help="Pad to the next multiple of the coarsest stride instead of a square.")
]
ReducedDecoding = Annotated[
    bool, typer.Option("--reduced-decoding", help="Decode large JPEG files at a part of their size.")
]
FeatureNetwork = Annotated[
    str | None, typer.Option(help="bifpn, fpn, panet, simplified-panet, nas-fpn, fully-connected, or a YAML file.")
]
Fusion = Annotated[str | None, typer.Option(help="fast, softmax, unbounded or none.")]


def progress_bar(is_quiet: bool) -> Progress:
    """A bar on a terminal; nothing where the output goes into a file."""
    return Progress(console=error_console, transient=True, disable=is_quiet or not error_console.is_terminal)


def say(text: str) -> None:
    """Print a line as it is: paths keep their brackets, and stay on one line for whoever reads the output."""
    out_console.print(text, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error's line, in red, beside the output."""
    error_console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)


def print_table(title: str, rows: Iterable[Mapping[str, Any]], left: tuple[str, ...] = ("name",)) -> None:
    """Print rows with the same keys; the columns named in `left` hold text, the others numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title_justify="left")
    for number, row in enumerate(rows):
        if number == 0:
            for column in row:
                short = column.replace("published", "publ.")
                table.add_column(short, justify="left" if column in left else "right")
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    out_console.print(table)
