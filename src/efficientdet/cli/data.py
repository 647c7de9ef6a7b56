"""data: datasets checked and changed. Each command is a function registered with `data_app`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet import data
from efficientdet.cli.options import Json, app, print_json, print_table, say, takes_settings
from efficientdet.data.settings import SplitSettings, SubsetSettings, TileSettings, WriteSettings

if TYPE_CHECKING:
    from efficientdet.data.write import DatasetReport

data_app = typer.Typer(
    help="Check, convert, split, merge, subset and tile datasets.", no_args_is_help=True, rich_markup_mode="markdown"
)
app.add_typer(data_app, name="data")

Source = Annotated[Path, typer.Argument(metavar="IN", help="Dataset: its folder or annotation file.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it appears when it is whole.")]


@data_app.command()
@takes_settings(WriteSettings, leave_out=["to"])
def convert(
    source: Source,
    out: Out,
    to: Annotated[str, typer.Option(help="Format to write: coco, voc, yolo, csv or parquet.")],
    settings: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Write a dataset in another format, with its images; what the format has no place for is counted.

    Example: `efficientdet data convert voc/ coco/ --to coco`
    """
    _print(data.convert(source, out, **settings, to=to), as_json)  # type: ignore[arg-type]


@data_app.command()
@takes_settings(SplitSettings, WriteSettings)
def split(source: Source, out: Out, settings: dict[str, Any], as_json: Json = False) -> None:
    """Divide a dataset into train, val and test, every class by its share; the same seed gives the same splits.

    Example: `efficientdet data split dataset/ divided/ --val 0.2 --test 0.1`
    """
    _print(data.split(source, out, **settings), as_json)


@data_app.command()
@takes_settings(WriteSettings)
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="IN...", help="Datasets: folders or annotation files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it appears when it is whole.")],
    settings: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Put datasets together, split by split; classes are the same if their names are.

    Example: `efficientdet data merge first/ second/ --out both/`
    """
    _print(data.merge(sources, out, **settings), as_json)


@data_app.command()
@takes_settings(SubsetSettings, WriteSettings)
def subset(source: Source, out: Out, settings: dict[str, Any], as_json: Json = False) -> None:
    """Keep some classes, a number of images, or a share of them.

    Example: `efficientdet data subset dataset/ small/ --fraction 0.1`
    """
    _print(data.subset(source, out, **settings), as_json)


@data_app.command()
@takes_settings(TileSettings, WriteSettings)
def tile(source: Source, out: Out, settings: dict[str, Any], as_json: Json = False) -> None:
    """Cut images into overlapping tiles; tiles.json says where each comes from.

    Example: `efficientdet data tile dataset/ tiles/ --size 640 --overlap 0.2`
    """
    _print(data.tile(source, out, **settings), as_json)


def _print(report: DatasetReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    rows = [{"split": name, **counts} for name, counts in report.splits.items()]
    print_table(f"{report.folder}: {report.format}, {len(report.class_names)} classes", rows, ("split",))
    if report.lost:
        lost = [{"what": what, "count": count} for what, count in report.lost.items()]
        print_table("lost or changed", lost, ("what",))
    for note in report.notes:
        say(note)
