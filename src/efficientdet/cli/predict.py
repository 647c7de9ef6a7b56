"""predict: annotated copies of images, and their detections as JSON."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.cli.options import (
    Json,
    MoreWeights,
    Weights,
    app,
    complain,
    print_json,
    progress_bar,
    say,
    takes_settings,
)
from efficientdet.cli.run_results import RunResults, save_annotated, spare_originals
from efficientdet.errors import ImageError
from efficientdet.inference.settings import DetectorSettings, EnsembleSettings, PostprocessSettings
from efficientdet.settings import names_of

if TYPE_CHECKING:
    from rich.progress import Progress

    from efficientdet.detections import Detections
    from efficientdet.inference.detector import Detector

# Up to this many images are done before torch would be imported.
FEW = 4


@app.command()
@takes_settings(EnsembleSettings, PostprocessSettings, DetectorSettings, stored=PostprocessSettings)
def predict(
    sources: Annotated[list[str], typer.Argument(help="Images, folders, globs, or - for standard input.")],
    settings: dict[str, Any],
    weights: Weights = "people",
    more_weights: MoreWeights = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the annotated images and of detections.json.")
    ] = Path("predictions"),
    images: Annotated[bool, typer.Option(help="Write annotated images, or only the JSON.", show_default=False)] = True,
    as_json: Json = False,
) -> None:
    """Detect objects in images: writes annotated copies and one detections.json.

    An image that cannot be read is reported, the others go on, and the command ends with exit code 1.

    Example: `efficientdet predict photos/ --weights people --out predictions`
    """
    from efficientdet.images.find import find_images, output_names

    found, problems = find_images(sources)
    targets = [out / name for name in output_names(found)] if images else []
    spare_originals(found, targets)

    from efficientdet.exporting.cold_start import load_quickly
    from efficientdet.inference.detector import load

    if more_weights or set(settings) & names_of(EnsembleSettings).keys():
        from efficientdet.inference.ensemble import ensemble

        detector = ensemble(weights, *(more_weights or ()), **settings)
    else:
        detector = (load_quickly if len(found) <= FEW else load)(weights, **settings)
    results = RunResults(out / "detections.json", {"weights": weights, "engine": str(detector.engine)}, len(found))
    with results, progress_bar(as_json) as progress:
        for problem in problems:
            results.fail(problem.place, str(problem))
        _predict_all(detector, found, targets, results, progress)
    if as_json:
        print_json({"images": results.images, "failures": results.failures})
    else:
        boxes = sum(len(entry["detections"]) for entry in results.images)
        say(f"{len(results.images)} images, {boxes} boxes; written to {out}/ ({detector.engine})")
    if results.failures:
        complain(f"{len(results.failures)} of {len(found) + len(problems)} images failed")
        raise typer.Exit(1)


def _predict_all(
    detector: Detector, found: Sequence[Path | str], targets: Sequence[Path], results: RunResults, progress: Progress
) -> None:
    """Predict one image after another, past those that fail; write annotated copies where there are targets."""
    from efficientdet.images.find import STANDARD_INPUT, standard_input

    images = (standard_input() if source == STANDARD_INPUT else source for source in found)
    answers = zip_longest(found, targets, detector.try_many(images))
    for source, target, detections in progress.track(answers, total=len(found), description="predicting"):
        if isinstance(detections, ImageError):
            results.fail(str(source), str(detections))
            continue
        with results.undisturbed():
            _keep(str(source), detections, target, results)


def _keep(source: str, detections: Detections, target: Path | None, results: RunResults) -> None:
    """Write the annotated copy, if one is wanted, and keep the result."""
    entry = {**detections.to_json(), "source": source}
    if target is not None:
        try:
            save_annotated(detections, target)
            entry["annotated"] = str(target)
        except Exception as error:  # Pillow raises nearly anything where a format cannot hold an image
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            results.fail(source, f"{source}: its annotated copy cannot be written to {target} ({error})")
    results.add(entry)
