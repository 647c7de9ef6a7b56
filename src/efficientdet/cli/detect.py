"""demo, predict, evaluate: a detector and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from efficientdet.atomic_write import replacing, write_json
from efficientdet.cli.options import (
    Anchors,
    Backend,
    Candidates,
    Device,
    Json,
    Nms,
    Precision,
    Preprocess,
    Rectangular,
    ReducedDecoding,
    Size,
    app,
    complain,
    out_console,
    progress_bar,
    say,
)
from efficientdet.errors import ImageError, SettingError

if TYPE_CHECKING:
    from efficientdet.detections import Detections
    from efficientdet.inference.detector import Detector


@app.command()
def demo(
    picture: Annotated[Path | None, typer.Argument(help="Default: the portrait that matplotlib ships.")] = None,
    weights: Annotated[str, typer.Option(help="Bundled name or checkpoint.")] = "people",
    out: Annotated[Path, typer.Option(help="Folder for the annotated picture.")] = Path("demo"),
) -> None:
    """Find people in a picture with the bundled detector; offline.

    Example: `efficientdet demo photo.jpg`
    """
    from efficientdet.images.find import sample_picture
    from efficientdet.inference.detector import load

    source = picture or sample_picture()
    target = out / f"{source.stem}.jpg"
    _spare_originals([source], [target])
    detections = load(weights).predict(source)
    out.mkdir(parents=True, exist_ok=True)
    _save_picture(detections, target)
    _print_detections(detections, source)
    say(f"annotated picture: {target}")


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
    nms: Nms = "hard",
    candidates: Candidates = "pairs",
    preprocess: Preprocess = None,
    anchors: Anchors = None,
    image_size: Size = None,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Precision = "fp32",
    rectangular: Rectangular = False,
    reduced_decoding: ReducedDecoding = False,
    pictures: Annotated[bool, typer.Option(help="Write annotated pictures.")] = True,
    as_json: Json = False,
) -> None:
    """Detect objects: writes annotated pictures and one detections.json.

    Goes on past a picture that cannot be read, reports it, and exits with 1 at the end.

    Example: `efficientdet predict photos/ --weights people --out predictions`
    """
    from efficientdet.images.find import find_pictures
    from efficientdet.inference.detector import load

    detector = load(
        weights, device=device, backend=backend, precision=precision, image_size=image_size, rectangular=rectangular,
        reduced_decoding=reduced_decoding, preprocess=preprocess, anchors=anchors, score_threshold=score_threshold,
        iou_threshold=iou_threshold, max_detections=max_detections, nms=nms, candidates=candidates,
    )  # fmt: skip
    found = find_pictures(sources)
    report, failures = _predict_all(detector, found, out if pictures else None, as_json)
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "detections.json",
        {"weights": weights, "engine": str(detector.engine), "pictures": report, "failures": failures},
    )
    if as_json:
        print(json.dumps({"pictures": report, "failures": failures}))
    else:
        boxes = sum(len(entry["detections"]) for entry in report)
        say(f"{len(report)} pictures, {boxes} boxes; written to {out}/ ({detector.engine})")
    if failures:
        complain(f"{len(failures)} of {len(found)} pictures failed")
        raise typer.Exit(1)


def _predict_all(
    detector: Detector, found: list[Path | str], out: Path | None, quiet: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Predict one picture at a time, past those that fail; write the annotated ones if `out` is given."""
    from efficientdet.images.find import STANDARD_INPUT, output_names, standard_input

    report: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    names = output_names(found)
    if out is not None:
        _spare_originals(found, [out / name for name in names])
        out.mkdir(parents=True, exist_ok=True)
    pictures = (standard_input() if source == STANDARD_INPUT else source for source in found)
    with progress_bar(quiet) as progress:
        answers = zip(found, names, detector.try_many(pictures), strict=True)
        for source, name, detections in progress.track(answers, total=len(found), description="predicting"):
            if isinstance(detections, ImageError):
                failures.append({"source": str(source), "error": str(detections)})
                complain(f"error: {detections}")
                continue
            entry = {**detections.to_json(), "source": str(source)}
            if out is not None:
                _save_picture(detections, out / name)
                entry["annotated"] = str(out / name)
            report.append(entry)
    return report, failures


@app.command()
def evaluate(
    weights: Annotated[str, typer.Argument(help="Bundled name or checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set, or one annotation file.")],
    split: Annotated[str, typer.Option(help="Which split of a folder.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the metrics to this JSON file.")] = None,
    nms: Nms = "hard",
    candidates: Candidates = "pairs",
    preprocess: Preprocess = None,
    anchors: Anchors = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 8,
    image_size: Size = None,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Precision = "fp32",
    rectangular: Rectangular = False,
    reduced_decoding: ReducedDecoding = False,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out missing pictures.")] = False,
    as_json: Json = False,
) -> None:
    """Measure COCO AP, overall and by class.

    Example: `efficientdet evaluate runs/1/best.safetensors --data dataset/ --split test`
    """
    from efficientdet.evaluation.evaluate import evaluate as run_evaluation
    from efficientdet.inference.detector import load

    detector = load(
        weights, device=device, backend=backend, precision=precision, image_size=image_size, rectangular=rectangular,
        reduced_decoding=reduced_decoding, preprocess=preprocess, anchors=anchors,
    )  # fmt: skip
    with progress_bar(as_json) as progress:
        task = progress.add_task("evaluating", total=None)
        metrics = run_evaluation(
            detector, data, split=split, batch_size=batch_size, skip_missing=skip_missing, nms=nms,
            candidates=candidates,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        metrics.to_json(out)
    print(json.dumps(metrics.to_dict())) if as_json else out_console.print(metrics.table())


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
        table.add_row(entry["class_name"], f"{entry['score']:.2f}", *(f"{side:.0f}" for side in entry["box_xyxy"]))
    out_console.print(table)


def _save_picture(detections: Detections, target: Path) -> None:
    with replacing(target) as temporary:
        detections.draw().save(temporary, quality=92)
