"""data: checks and changes datasets. Each command is a function registered with `data_app`."""

from __future__ import annotations

import typer

from efficientdet.cli.options import app

data_app = typer.Typer(help="Check, convert, split, merge, subset and tile datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.callback()
def _data() -> None:
    """Keep the commands of the group apart, however few they are; the help text is that of `data_app`."""
