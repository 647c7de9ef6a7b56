"""demo, predict, evaluate: a detector and images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.atomic_write import replacing, write_json
from efficientdet.cli.options import (
    Json,
    SkipMissing,
    app,
    complain,
    out_console,
    print_table,
    progress_bar,
    say,
    takes_settings,
)
from efficientdet.errors import ImageError, SettingError
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings

if TYPE_CHECKING:
    from efficientdet.detections import Detections
    from efficientdet.inference.detector import Detector

Weights = Annotated[
    str,
    typer.Option(
        "--weights", "-w", help="Bundled model, checkpoint, exported file, released model, or hf://owner/repo."
    ),
]


@app.command()
def demo(
    image: Annotated[
        Path | None, typer.Argument(help="An image; by default the portrait that matplotlib ships.")
    ] = None,
    weights: Weights = "people",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the annotated image.")] = Path("demo"),
) -> None:
    """Find people in an image with the bundled detector. Works offline.

    Example: `efficientdet demo photo.jpg`
    """
    from efficientdet.images.find import sample_image
    from efficientdet.inference.detector import load

    source = image or sample_image()
    target = out / f"{source.stem}.jpg"
    _spare_originals([source], [target])
    detections = load(weights).predict(source)
    out.mkdir(parents=True, exist_ok=True)
    _save_annotated(detections, target)
    rows = [
        {
            "class": entry["class_name"],
            "score": f"{entry['score']:.2f}",
            **{side: f"{x:.0f}" for side, x in zip(("left", "top", "right", "bottom"), entry["box_xyxy"], strict=True)},
        }
        for entry in detections.to_json()["detections"]
    ]
    print_table(f"{len(detections)} found in {source.name}", rows, ("class",))
    say(f"annotated image: {target}")


@app.command()
@takes_settings(PostprocessSettings, DetectorSettings, stored=PostprocessSettings)
def predict(
    sources: Annotated[list[str], typer.Argument(help="Images, folders, globs, or - for standard input.")],
    settings: dict[str, Any],
    weights: Weights = "people",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the annotated images and of detections.json.")
    ] = Path("predictions"),
    images: Annotated[bool, typer.Option(help="Write annotated images.")] = True,
    as_json: Json = False,
) -> None:
    """Detect objects in images: writes annotated copies and one detections.json.

    An image that cannot be read is reported, the others go on, and the command ends with exit code 1.

    Example: `efficientdet predict photos/ --weights people --out predictions`
    """
    from efficientdet.images.find import find_images
    from efficientdet.inference.detector import load

    detector = load(weights, **settings)
    found = find_images(sources)
    report, failures = _predict_all(detector, found, out if images else None, as_json)
    out.mkdir(parents=True, exist_ok=True)
    content = {"weights": weights, "engine": str(detector.engine), "images": report, "failures": failures}
    write_json(out / "detections.json", content)
    if as_json:
        print(json.dumps({"images": report, "failures": failures}))
    else:
        boxes = sum(len(entry["detections"]) for entry in report)
        say(f"{len(report)} images, {boxes} boxes; written to {out}/ ({detector.engine})")
    if failures:
        complain(f"{len(failures)} of {len(found)} images failed")
        raise typer.Exit(1)


def _predict_all(
    detector: Detector, found: list[Path | str], out: Path | None, quiet: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Predict one image at a time, past those that fail; write the annotated ones if `out` is given."""
    from efficientdet.images.find import STANDARD_INPUT, output_names, standard_input

    report: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    names = output_names(found)
    if out is not None:
        _spare_originals(found, [out / name for name in names])
        out.mkdir(parents=True, exist_ok=True)
    images = (standard_input() if source == STANDARD_INPUT else source for source in found)
    with progress_bar(quiet) as progress:
        answers = zip(found, names, detector.try_many(images), strict=True)
        for source, name, detections in progress.track(answers, total=len(found), description="predicting"):
            if isinstance(detections, ImageError):
                failures.append({"source": str(source), "error": str(detections)})
                complain(f"error: {detections}")
                continue
            entry = {**detections.to_json(), "source": str(source)}
            if out is not None:
                _save_annotated(detections, out / name)
                entry["annotated"] = str(out / name)
            report.append(entry)
    return report, failures


@app.command()
@takes_settings(PostprocessSettings, DetectorSettings, stored=PostprocessSettings, leave_out=["score_threshold"])
def evaluate(
    weights: Annotated[str, typer.Argument(help="Bundled model, checkpoint, exported file or released model.")],
    data: Annotated[Path, typer.Option(help="Folder of the dataset, or one annotation file.")],
    settings: dict[str, Any],
    split: Annotated[str, typer.Option(help="Split of the folder.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the metrics.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images that go through the network together.")] = 8,
    skip_missing: SkipMissing = False,
    as_json: Json = False,
) -> None:
    """Measure COCO AP, overall and by class, on detections with scores down to 0.001.

    Example: `efficientdet evaluate runs/1/best.safetensors --data dataset/ --split test`
    """
    from efficientdet.evaluation.evaluate import evaluate as run_evaluation
    from efficientdet.inference.detector import load

    detector = load(weights, **settings)
    with progress_bar(as_json) as progress:
        task = progress.add_task("evaluating", total=None)
        metrics = run_evaluation(
            detector,
            data,
            split=split,
            batch_size=batch_size,
            skip_missing=skip_missing,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        metrics.to_json(out)
    print(json.dumps(metrics.to_dict())) if as_json else out_console.print(metrics.table())


def _spare_originals(sources: Sequence[Path | str], targets: Sequence[Path]) -> None:
    """Refuse to write annotated images over the images themselves."""
    originals = {Path(source).resolve() for source in sources}
    for target in targets:
        if target.resolve() in originals:
            raise SettingError(f"--out {target.parent}: {target} would be overwritten; choose another folder")


def _save_annotated(detections: Detections, target: Path) -> None:
    with replacing(target) as temporary:
        detections.draw().save(temporary, quality=92)
