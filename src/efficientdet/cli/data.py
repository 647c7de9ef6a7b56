"""data: datasets checked and changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet import data
from efficientdet.cli.options import Json, app, print_json, print_table, progress_bar, say, takes_settings
from efficientdet.data.settings import CheckSettings, SplitSettings, SubsetSettings, TileSettings, WriteSettings
from efficientdet.errors import find_name
from efficientdet.text import printable

if TYPE_CHECKING:
    from efficientdet.data.quality.report import DataReport
    from efficientdet.data.write import DatasetReport

data_app = typer.Typer(
    help="Check, convert, split, merge, subset and tile datasets.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")

Source = Annotated[Path, typer.Argument(metavar="IN", help="Dataset: its folder or annotation file.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it appears when it is whole.")]
SEVERITIES = ("error", "warning", "note")
# Characters of an example in the table.
LONGEST_EXAMPLE = 300


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


@data_app.command("check")
@takes_settings(CheckSettings)
def check(
    data: Annotated[Path, typer.Argument(help="Folder of the dataset, or one file of annotations.")],
    settings: dict[str, Any],
    html: Annotated[Path | None, typer.Option("--html", help="HTML file for the report, with sample images.")] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", help="Folder, or .json file for a single split, for a copy with what can be fixed, fixed."
        ),
    ] = None,
    fail_on: Annotated[
        str, typer.Option(help="Least severity of a finding that ends the command with 1: error, warning or note.")
    ] = "error",
    as_json: Json = False,
) -> None:
    """Look for what may be wrong with a dataset: boxes, classes, images, anchors and, with a model, labels.

    Exit code 0: nothing found of the severity of --fail-on or worse; 1: something was; 2: wrong usage.

    Example: `efficientdet data check dataset/ --image-size 320 --html check.html`
    """
    level: Any = find_name("severity", fail_on, SEVERITIES)
    from efficientdet.atomic_write import write_text
    from efficientdet.data.quality.check import read_all
    from efficientdet.settings import changed
    from efficientdet.training.check_data import report_on

    reading = read_all(data)
    with progress_bar(as_json) as progress:
        task = progress.add_task("reading", total=None)
        report = report_on(
            str(data), reading, changed(CheckSettings(), settings),
            lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None),
        )  # fmt: skip
    written = {}
    if html is not None:
        from efficientdet.data.quality.report import write_page

        write_text(html, write_page(report))
        written["html"] = str(html)
    if fix is not None:
        from efficientdet.data.quality.fixes import write_fixed

        fixes = write_fixed(reading.splits, report.findings, fix)
        written["fixed"] = str(fix)
    if as_json:
        print_json(report.to_json() | written | ({"fixes": fixes} if fix is not None else {}))
    else:
        _print_check(report)
        for name, path in written.items():
            say(f"{name}: {path}")
        if fix is not None:
            say("; ".join(f"{what}: {count}" for what, count in fixes.items() if count) or "nothing to fix")
        say(report.summary())
    if report.fails(level):
        raise typer.Exit(1)


def _print_check(report: DataReport) -> None:
    from efficientdet.data.quality.findings import grouped

    print_table("splits", report.split_rows(), ("split", "image sizes"))
    if report.anchors is not None:
        fit = report.anchors.fit
        title = f"anchors of {report.model} at image size {fit.image_size}: recall {fit.recall:.3f}"
        print_table(title, report.anchor_rows(), ("size in pixels",))
        if report.anchors.suggestions:
            print_table("better when training", report.suggestion_rows(), ("add to efficientdet train",))
    rows = []
    for code, (first, *others) in grouped(report.findings).items():
        place = f" ({printable(first.short_place)})" if first.short_place else ""
        rows.append({
            "severity": first.severity, "code": code, "count": 1 + len(others),
            "first of them": printable(first.what, LONGEST_EXAMPLE) + place, "what to do": first.rule.advice,
        })  # fmt: skip
    if rows:
        print_table("findings", rows, ("severity", "code", "first of them", "what to do"))
