"""What the commands share: the application, options made from settings, and the ways of printing."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from efficientdet.errors import SettingError
from efficientdet.settings import Kind, changed, kinds
from efficientdet.text import printable, printable_lines

# Characters of text from outside that a table's cell shows.
LONGEST_CELL = 1000

app = typer.Typer(
    help="EfficientDet: detect objects in images, and train detectors of your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich would keep two thirds of a line for the names of the options
    context_settings={"max_content_width": 120},
)


class OutConsole(Console):
    """Standard output; where its reader has gone, the command says so and ends with 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Rich calls this where a write finds no reader."""
        _end_without_output(BrokenPipeError())


def flush_output() -> None:
    """Write what is left for standard output.

    Raises:
        SystemExit: 1, after a line that says so: nothing reads it any more, or the disk is full.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        _end_without_output(error)


def _end_without_output(error: OSError) -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python would try again as it ends
    has_no_reader = isinstance(error, BrokenPipeError)
    reason = "the program that reads this output has ended" if has_no_reader else f"standard output: {error.strerror}"
    complain(f"error: {reason}")
    raise SystemExit(1) from error


# In a file or a pipe there is no edge to wrap at.
out_console = OutConsole(width=None if sys.stdout is not None and sys.stdout.isatty() else 160)
error_console = Console(stderr=True)

Weights = Annotated[
    str,
    typer.Option(
        "--weights", "-w", help="Bundled model, checkpoint, exported file, released model, or hf://owner/repo."
    ),
]
MoreWeights = Annotated[
    list[str] | None,
    typer.Option("--ensemble", help="Further checkpoint whose boxes are fused with these; may be given several times."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out images whose file is missing.")]


def takes_settings(
    *classes: type, stored: type | None = None, leave_out: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of some settings dataclasses.

    The command's function takes a last parameter `settings`: a dict of the settings that were typed, and of no others.

    Args:
        classes: the dataclasses; their fields give name, type, help and default.
        stored: the one of them whose values a checkpoint may store, which then go before the defaults.
        leave_out: fields that are no option of this command.
    """
    options = [
        _option(field, kinds(cls)[field.name], "the checkpoint's, else " if cls is stored else "")
        for cls in classes
        for field in dataclasses.fields(cls)
        if "help" in field.metadata and field.name not in leave_out
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            typed = {option.name: arguments.pop(option.name) for option in options}
            settings = {name: value for name, value in typed.items() if value is not None}
            for cls in classes:  # what cannot be is refused before anything heavy is loaded
                own_names = {field.name for field in dataclasses.fields(cls)}
                changed(cls(), {name: value for name, value in settings.items() if name in own_names})
            command(**arguments, settings=settings)

        run.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*own, *options)}
        return run

    return decorate


def _option(field: dataclasses.Field[Any], kind: Kind, before: str) -> inspect.Parameter:
    """A field as an option that is None unless typed; `before` goes before the default in the help."""
    text, own, between = field.metadata["help"], field.default, " " if kind.length else ","
    if not (own is None or own is False or own == ()):
        text += f" Default: {before}{between.join(map(str, own)) if isinstance(own, tuple) else own}."
    name = field.name.replace("_", "-")
    names = [f"--{one.replace('_', '-')}" for one in (field.name, field.metadata["also"]) if one]
    if kind.types == (bool,):
        names[0] = f"--{name}/--no-{name}"
    names += [field.metadata["flag"]] if field.metadata["flag"] else []
    extra: dict[str, Any] = {}
    annotation: Any = kind.types[0]
    if kind.choices and int in kind.types:
        annotation, extra = str, {"parser": _number_parser(field.name, kind.choices), "metavar": "N"}
    elif kind.choices:
        annotation = str
    elif int in kind.types and tuple in kind.types:
        annotation, extra = str, {"parser": parse_size, "metavar": "SIZE"}
    elif float in kind.types and tuple in kind.types:
        annotation, extra = str, {"parser": _numbers_parser(field.name), "metavar": "FLOAT"}
    elif kind.items is not None and kind.length is not None:
        annotation = tuple[kind.items.types * kind.length]  # type: ignore[misc]
    elif kind.items is not None:
        annotation, extra = str, {"parser": _list_parser(field.name, kind.items.types[0]), "metavar": "A,B,..."}
    option = typer.Option(*names, help=text, show_default=False, **extra)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, option]
    )


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they are typed on a command line."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            between = "x" if name == "image_size" else ","
            words += [f"--{option}", between.join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


def parse_size(text: str) -> int | tuple[int, int]:
    """`512` or `384x512` (height x width) as an image size.

    Raises:
        SettingError: it is neither.
    """
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdigit() for side in sides):
        raise SettingError(f"image size '{text}': write the side of a square, such as 512, or 384x512 (height x width)")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _list_parser(name: str, item: type) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        """Items between commas."""
        try:
            return tuple(dict.fromkeys(item(part.strip()) for part in text.split(",") if part.strip()))
        except ValueError:
            raise SettingError(f"{name} '{text}': write numbers between commas, such as 1,8") from None

    return parse


def _numbers_parser(name: str) -> Callable[[str], float | tuple[float, ...]]:
    def parse(text: str) -> float | tuple[float, ...]:
        """A number, or several between commas."""
        try:
            numbers = tuple(map(float, text.split(",")))
        except ValueError:
            raise SettingError(f"{name} '{text}': write a number, or several between commas") from None
        return numbers if len(numbers) > 1 else numbers[0]

    return parse


def _number_parser(name: str, words: tuple[str, ...]) -> Callable[[str], int | str]:
    def parse(text: str) -> int | str:
        """A whole number or one of some words."""
        if text in words:
            return text
        if text.lstrip("-").isdigit():
            return int(text)
        raise SettingError(f"{name} '{text}': write a whole number or {' or '.join(words)}")

    return parse


def progress_bar(is_quiet: bool, *columns: ProgressColumn) -> Progress:
    """A bar on a terminal, with some columns more; nothing where the output goes into a file."""
    shown = (*Progress.get_default_columns(), *columns)
    return Progress(*shown, console=error_console, transient=True, disable=is_quiet or not error_console.is_terminal)


def say(text: str) -> None:
    """Print text as it is: paths keep their brackets, and stay on one line for whoever reads the output."""
    out_console.print(printable_lines(text), highlight=False, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print one line of JSON, and nothing else, on standard output, in ASCII: no terminal's encoding can lack it."""
    try:
        print(json.dumps(content), flush=True)
    except OSError as error:
        _end_without_output(error)


def complain(text: str) -> None:
    """Print an error's line, in red, to standard error."""
    error_console.print(printable_lines(text), style="red", highlight=False, markup=False, soft_wrap=True)


def tell_progress(text: str) -> None:
    """Print a line on progress, dimmed, to standard error."""
    error_console.print(printable_lines(text), style="dim", highlight=False, markup=False)


def print_table(
    title: str, rows: Iterable[Mapping[str, Any]], left: tuple[str, ...] = ("name",), has_header: bool = True
) -> None:
    """Print rows with the same keys; the columns named in `left` hold text, the others numbers."""
    table = Table(
        show_header=has_header,
        title=Text(printable(title)),
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        title_justify="left",
    )
    for number, row in enumerate(rows):
        if number == 0:
            for column in row:
                short = column.replace("published", "publ.")
                table.add_column(short, justify="left" if column in left else "right")
        table.add_row(*(Text("-" if value is None else printable(value, LONGEST_CELL)) for value in row.values()))
    if table.columns:
        out_console.print(table)
    else:
        say(title)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values in two columns."""
    print_table(title, ({"": name, " ": value} for name, value in facts.items()), ("", " "), has_header=False)
