"""The command line: parses, calls the public functions, prints. Exit 0 done, 1 some inputs failed, 2 wrong usage."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from efficientdet import __version__
from efficientdet.cli import ablate, benchmark, detect, explain, export, models, quantize, report, train  # noqa: F401  (each adds its commands to the application)
from efficientdet.cli.options import app, complain
from efficientdet.errors import EfficientDetError


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Parse what stands before the command; the help text is that of `app`."""


def main() -> None:
    """Run the command line; turn every error that is for people into one line and an exit code."""
    try:
        app()
    except EfficientDetError as error:
        complain(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        complain(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        complain("stopped")
        sys.exit(130)
