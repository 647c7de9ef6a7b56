"""The command line: parses, calls the public functions, prints. Exit 0 done, 1 some inputs failed, 2 wrong usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from efficientdet import __version__
from efficientdet.errors import EfficientDetError, ImageError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from efficientdet.detections import Detections
    from efficientdet.inference.detector import Detector

app = typer.Typer(
    help="EfficientDet: detect objects in pictures, and train detectors of your own.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
)  # fmt: skip
out_console = Console()
error_console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps; auto takes a GPU where there is one.")]
Size = Annotated[int | None, typer.Option(help="Side of the square input in pixels; default the model's own.")]


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


@app.command()
def demo(
    picture: Annotated[Path | None, typer.Argument(help="Default: the portrait that matplotlib ships.")] = None,
    weights: Annotated[str, typer.Option(help="Bundled name or checkpoint.")] = "people",
    out: Annotated[Path, typer.Option(help="Folder for the annotated picture.")] = Path("demo"),
) -> None:
    """Find people in a picture with the bundled detector; offline.

    Example: `efficientdet demo photo.jpg`
    """
    from efficientdet.inference.detector import load

    source = picture or _sample_portrait()
    target = out / f"{source.stem}.jpg"
    _spare_originals([source], [target])
    detections = load(weights).predict(source)
    out.mkdir(parents=True, exist_ok=True)
    _save_picture(detections, target)
    _print_detections(detections, source)
    _say(f"annotated picture: {target}")


def _sample_portrait() -> Path:
    """The picture of Grace Hopper among matplotlib's sample data, found without importing matplotlib."""
    import importlib.util

    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    portrait = folder / "mpl-data" / "sample_data" / "grace_hopper.jpg" if folder else None
    if portrait is None or not portrait.is_file():
        raise MissingExtraError(
            "the demo's picture comes with matplotlib; run: pip install 'efficientdet[demo]', or name a picture: "
            "efficientdet demo photo.jpg"
        )
    return portrait


@app.command()
def predict(
    sources: Annotated[list[str], typer.Argument(help="Pictures, folders, globs, or - for standard input.")],
    weights: Annotated[str, typer.Option("--weights", "-w", help="Bundled name or checkpoint.")] = "people",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pictures and detections.json.")] = Path(
        "predictions"
    ),
    score_threshold: Annotated[float, typer.Option(help="Drop detections below this score.")] = 0.3,
    iou_threshold: Annotated[float, typer.Option(help="Hard NMS drops boxes that overlap by more.")] = 0.5,
    max_detections: Annotated[int, typer.Option(help="At most so many a picture.")] = 100,
    nms: Annotated[str, typer.Option(help="hard or soft.")] = "hard",
    image_size: Size = None,
    device: Device = "auto",
    pictures: Annotated[bool, typer.Option(help="Write annotated pictures.")] = True,
    as_json: Json = False,
) -> None:
    """Detect objects: writes annotated pictures and one detections.json.

    Goes on past a picture that cannot be read, reports it, and exits with 1 at the end.

    Example: `efficientdet predict photos/ --weights people --out predictions`
    """
    from efficientdet.inference.detector import load
    from efficientdet.inference.inputs import find_pictures

    detector = load(
        weights, device=device, image_size=image_size, score_threshold=score_threshold,
        iou_threshold=iou_threshold, max_detections=max_detections, nms=nms,
    )  # fmt: skip
    found = find_pictures(sources)
    report, failures = _predict_all(detector, found, out if pictures else None, as_json)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "detections.json", {"weights": weights, "pictures": report, "failures": failures})
    if as_json:
        print(json.dumps({"pictures": report, "failures": failures}))
    else:
        boxes = sum(len(entry["detections"]) for entry in report)
        _say(f"{len(report)} pictures, {boxes} boxes; written to {out}/")
    if failures:
        _complain(f"{len(failures)} of {len(found)} pictures failed")
        raise typer.Exit(1)


def _predict_all(
    detector: Detector, found: list[Path | str], out: Path | None, quiet: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Predict one picture at a time, past those that fail; write the annotated ones if `out` is given."""
    from efficientdet.inference.inputs import STANDARD_INPUT, output_names, read_standard_input

    report: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    names = output_names(found)
    if out is not None:
        _spare_originals(found, [out / name for name in names])
        out.mkdir(parents=True, exist_ok=True)
    with _progress(quiet) as progress:
        for source, name in progress.track(list(zip(found, names, strict=True)), description="predicting"):
            try:
                picture = read_standard_input() if source == STANDARD_INPUT else source
                detections = detector.predict(picture)
            except ImageError as error:
                failures.append({"source": str(source), "error": str(error)})
                _complain(f"error: {error}")
                continue
            entry = {**detections.to_json(), "source": str(source)}
            if out is not None:
                _save_picture(detections, out / name)
                entry["annotated"] = str(out / name)
            report.append(entry)
    return report, failures


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="d0-d7x, lite0-lite4; see `efficientdet models`.")],
    data: Annotated[Path, typer.Option(help="Folder with train (and val) annotations, or one COCO JSON.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; default runs/N.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", help="Start from this detector; new classes get a new head.")
    ] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="Start the backbone from a .npz of folded ImageNet weights.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out pictures whose file is missing.")
    ] = False,
    allow_no_boxes: Annotated[
        bool, typer.Option("--allow-no-boxes", help="Train on a set without any box.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Pictures a step on each device.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Steps whose gradients are added.")] = 1,
    image_size: Size = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default from the batch size.")] = None,
    optimiser: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    warmup_epochs: Annotated[float, typer.Option(help="Epochs of rising learning rate.")] = 1.0,
    ema_decay: Annotated[float, typer.Option(help="Of the averaged weights; 0 for none.")] = 0.9998,
    scale_jitter: Annotated[
        tuple[float, float] | None, typer.Option(help="Range of scales; default by the number of epochs.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    batch_norm: Annotated[str, typer.Option(help="Backbone statistics: auto, train or frozen.")] = "auto",
    backbone_rate: Annotated[float, typer.Option(help="Factor on the backbone's learning rate.")] = 1.0,
    frozen_stages: Annotated[int, typer.Option(help="Stages of the backbone that do not learn, 0-7.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Epochs between evaluations.")] = 1,
    save_every: Annotated[int, typer.Option(help="Steps between saves of the resumable state.")] = 200,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Loader processes.")] = None,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(help="How many devices.")] = 1,
    as_json: Json = False,
) -> None:
    """Train a detector on your pictures; keeps the best and the last checkpoint.

    Example: `efficientdet train lite0 --data dataset/ --weights people --epochs 30`
    """
    from efficientdet.training.run import train as run_training

    run = run_training(
        model, data, weights=weights, backbone_weights=backbone_weights, out=out, resume=resume,
        skip_missing=skip_missing, quiet=as_json, allow_no_boxes=allow_no_boxes, epochs=epochs,
        batch_size=batch_size, accumulate=accumulate, image_size=image_size, learning_rate=learning_rate,
        optimiser=optimiser, warmup_epochs=warmup_epochs, ema_decay=ema_decay, scale_jitter=scale_jitter,
        precision=precision, batch_norm=batch_norm, backbone_rate=backbone_rate, frozen_stages=frozen_stages,
        evaluate_every=evaluate_every, save_every=save_every, seed=seed, workers=workers, device=device,
        devices=devices,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"best": str(run.best), "last": str(run.last), **run.report}))
        return
    if run.metrics is not None:
        out_console.print(run.metrics.table())
    if run.report["skipped_steps"]:
        _say(f"steps skipped: {len(run.report['skipped_steps'])}; see {run.folder}/report.json")
    _say(f"best checkpoint: {run.best}")


@app.command()
def evaluate(
    weights: Annotated[str, typer.Argument(help="Bundled name or checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set, or one annotation file.")],
    split: Annotated[str, typer.Option(help="Which split of a folder.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the metrics to this JSON file.")] = None,
    nms: Annotated[str, typer.Option(help="hard or soft.")] = "hard",
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 8,
    image_size: Size = None,
    device: Device = "auto",
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out missing pictures.")] = False,
    as_json: Json = False,
) -> None:
    """Measure COCO AP, overall and by class.

    Example: `efficientdet evaluate runs/1/best.safetensors --data dataset/ --split test`
    """
    from efficientdet.evaluation.evaluate import evaluate as run_evaluation
    from efficientdet.inference.detector import load

    detector = load(weights, device=device, image_size=image_size)
    with _progress(as_json) as progress:
        task = progress.add_task("evaluating", total=None)
        metrics = run_evaluation(
            detector, data, split=split, batch_size=batch_size, skip_missing=skip_missing, nms=nms,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        metrics.to_json(out)
    print(json.dumps(metrics.to_dict())) if as_json else out_console.print(metrics.table())


@app.command()
def models(as_json: Json = False) -> None:
    """List the family, with parameters counted from the code, and the bundled weights.

    Example: `efficientdet models --json`
    """
    from efficientdet.analysis.models import bundled_rows, family_rows

    rows, bundled = family_rows(), bundled_rows()
    if as_json:
        print(json.dumps({"family": rows, "bundled": bundled}))
        return
    for title, content in (("the family (90 classes)", rows), ("bundled weights", bundled)):
        table = Table(title=title)
        for column in content[0] if content else ():
            table.add_column(column, justify="left" if column in ("name", "backbone", "classes") else "right")
        for row in content:
            table.add_row(*("-" if value is None else str(value) for value in row.values()))
        out_console.print(table)


def _progress(is_quiet: bool) -> Progress:
    """A bar on a terminal; nothing where the output goes into a file."""
    return Progress(console=error_console, transient=True, disable=is_quiet or not error_console.is_terminal)


def _say(text: str) -> None:
    """Print a line as it is: paths keep their brackets, and stay on one line for whoever reads the output."""
    out_console.print(text, highlight=False, markup=False, soft_wrap=True)


def _complain(text: str) -> None:
    error_console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)


def _spare_originals(sources: Sequence[Path | str], targets: Sequence[Path]) -> None:
    """Refuse to write annotated pictures over the pictures themselves."""
    originals = {Path(source).resolve() for source in sources}
    for target in targets:
        if target.resolve() in originals:
            raise SettingError(f"--out {target.parent}: {target} would be written over; choose another folder")


def _print_detections(detections: Detections, source: Path) -> None:
    table = Table(title=f"{len(detections)} found in {source.name}")
    for column in ("class", "score", "left", "top", "right", "bottom"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for entry in detections.to_json()["detections"]:
        table.add_row(
            entry["class_name"], f"{entry['score']:.2f}", *(f"{side:.0f}" for side in entry["box_xyxy"])
        )
    out_console.print(table)


def _save_picture(detections: Detections, target: Path) -> None:
    temporary = target.with_name(f".{target.stem}.part.jpg")
    detections.draw().save(temporary, quality=92)
    temporary.replace(target)


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Run the command line; turn every error that is for people into one line and an exit code."""
    try:
        app()
    except EfficientDetError as error:
        _complain(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        _complain(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _complain("stopped")
        sys.exit(130)
