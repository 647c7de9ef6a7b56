"""cache: what the cache folder holds, and emptying it. Each command is a function registered with `cache_app`."""

from __future__ import annotations

from typing import Annotated

import typer

from efficientdet import cache
from efficientdet.cli.options import Json, app, print_json, print_table, say

cache_app = typer.Typer(help="List and clear the cache folder.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")


@cache_app.command("list")
def list_(as_json: Json = False) -> None:
    """List what the cache folder holds: engines, downloaded weights, unpacked datasets, files of libraries.

    Example: `efficientdet cache list`
    """
    rows = [row._asdict() for row in cache.kept()]
    if as_json:
        print_json({"folder": str(cache.cache_dir()), "kept": rows})
        return
    print_table(str(cache.cache_dir()), rows, ("kind",))


@cache_app.command()
def clear(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND...]", help=f"Kinds of files: {', '.join(cache.KINDS)}; by default all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove what the cache folder holds; it is made, or downloaded, again when it is needed.

    Example: `efficientdet cache clear engines`
    """
    removed = cache.clear(kinds or ())
    if as_json:
        print_json({"folder": str(cache.cache_dir()), "removed": [row._asdict() for row in removed]})
        return
    for row in removed:
        say(f"removed {row.files} {'file' if row.files == 1 else 'files'} of {row.kind}, {row.megabytes} MB")
