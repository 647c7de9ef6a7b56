"""The command line: parses, calls the public functions, prints. Exit 0 done, 1 some inputs failed, 2 wrong usage."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Annotated

import typer

from efficientdet import __version__
from efficientdet.cache import cache_dir, may_be_written
from efficientdet.cli.options import app, complain, flush_output
from efficientdet.errors import EfficientDetError, Terminated

# The files of the commands, in the order of the help.
COMMAND_FILES = (
    "predict", "serve", "evaluate", "train", "data", "models", "export", "benchmark", "research", "cache",
)  # fmt: skip
# What PyTorch's error says where there is too little memory.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
for _name in COMMAND_FILES:
    importlib.import_module(f"{__name__}.{_name}")  # adds its command to the application


def _write_whole(group: typer.Typer) -> None:
    """Have the list of commands show each one's first paragraph; typer would cut off what it finds by itself."""
    for command in group.registered_commands:
        command.short_help = " ".join((command.callback.__doc__ or "").partition("\n\n")[0].split())
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        inner.short_help = inner.typer_instance.info.help
        _write_whole(inner.typer_instance)


_write_whole(app)


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
    _open_standard_streams()
    try:
        _run()
    finally:
        flush_output()


def _run() -> None:
    try:
        _keep_to_the_cache()
        app()
    except EfficientDetError as error:
        complain(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        complain(f"error: {error}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if not isinstance(error, MemoryError) and not any(text in reason for text in OUT_OF_MEMORY):
            raise
        complain(f"error: the memory does not suffice ({reason}); use a smaller image size or batch size")
        sys.exit(1)
    except KeyboardInterrupt:
        complain("stopped")
        sys.exit(130)
    except Terminated:
        complain("terminated")
        sys.exit(143)


def _keep_to_the_cache() -> None:
    """Let libraries that keep files of their own keep them in our cache, not in the home or the temporary folder.

    Where the cache cannot be written they are left alone: they would fail there, and find another place by themselves.
    """
    if not may_be_written(cache_dir()):
        return
    for variable, name in (("MPLCONFIGDIR", "matplotlib"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        os.environ.setdefault(variable, str(cache_dir() / name))


def _open_standard_streams() -> None:
    """Open what is closed of standard input, output and error, for other files would take their numbers.

    A character that an output's encoding lacks is written as an escape.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
