"""demo, predict: annotated copies of images, and their detections as JSON."""

from __future__ import annotations

import contextlib
import errno
import sys
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
    print_table,
    progress_bar,
    say,
    takes_settings,
)
from efficientdet.cli.run_results import RunResults, save_annotated, spare_originals
from efficientdet.cluster import ClusterSettings
from efficientdet.errors import ImageError, SettingError
from efficientdet.inference.settings import DetectorSettings, EnsembleSettings, PostprocessSettings
from efficientdet.settings import names_of
from efficientdet.text import without_password
from efficientdet.video.settings import TrackSettings, VideoSettings

if TYPE_CHECKING:
    from rich.progress import Progress

    from efficientdet.detections import Detections
    from efficientdet.inference.detector import Detector

# Up to this many images are done before torch would be imported.
FEW = 4


@app.command()
def demo(
    image: Annotated[
        Path | None, typer.Argument(help="An image; by default the portrait that matplotlib ships.")
    ] = None,
    weights: Weights = "people",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the annotated image.")] = Path("demo"),
) -> None:
    """Find people in an image with the bundled detector, those with a score of at least 0.5. Works offline.

    Example: `efficientdet demo photo.jpg`
    """
    from efficientdet.images.find import output_names, sample_image
    from efficientdet.inference.detector import load

    source = image or sample_image()
    target = out / output_names([source])[0]
    spare_originals([source], [target])
    detections = load(weights).predict(source, score_threshold=0.5)
    save_annotated(detections, target)
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
@takes_settings(
    EnsembleSettings, PostprocessSettings, DetectorSettings, VideoSettings, TrackSettings, ClusterSettings,
    stored=PostprocessSettings,
)  # fmt: skip
def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, globs, or - for standard input; or videos, a camera as 0, 1, ..., URLs of streams; "
            "or with --ray, a folder or bucket (s3://..., gs://...)."
        ),
    ],
    settings: dict[str, Any],
    weights: Weights = "people",
    more_weights: MoreWeights = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="Folder of the annotated images and of detections.json; with --ray, folder or bucket of the results.",
        ),
    ] = "predictions",
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Predict on a Ray cluster, into parquet files; after a crash, the same command does the rest."
        ),
    ] = False,
    images: Annotated[
        bool, typer.Option(help="Write annotated images and videos, or only the JSON.", show_default=False)
    ] = True,
    line: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X1,Y1,X2,Y2", help="Line in a video, in pixels, at which tracks are counted. Repeatable."
        ),
    ] = None,
    zone: Annotated[
        list[Path] | None,
        typer.Option(help="JSON file of polygons in a video, by name, in which objects are counted. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Detect objects in images or videos: writes annotated copies and one detections.json, for a video JSON lines too.

    An image that cannot be read is reported, the others go on, and the command ends with exit code 1.

    With --ray, a folder or bucket is predicted on a Ray cluster, or on this machine, into parquet files.

    Example: `efficientdet predict photos/ --weights people --out predictions`
    """
    from efficientdet.video.frames import is_video

    reading = {name: settings.pop(name) for name in names_of(VideoSettings, TrackSettings) if name in settings}
    places = {name: value for name, value in (("line", line), ("zone", zone)) if value}
    if ray:
        views = {name: settings[name] for name in names_of(EnsembleSettings) if name in settings}
        _refuse([*reading, *places, *views, *(["ensemble"] if more_weights else [])], "runs without --ray")
        return _predict_on_ray(sources, weights, out, settings, as_json)
    _refuse([name for name in names_of(ClusterSettings) if name in settings], "--ray")
    _refuse([without_password(one) for one in sources if one.startswith(("s3://", "gs://"))], "--ray")
    videos = [source for source in sources if is_video(source)]
    if videos and len(videos) < len(sources):
        raise SettingError("sources: some are images, some videos; predict each kind with a command of its own")
    every_weights = (weights, *(more_weights or ()))
    if videos:
        where = (line or [], zone or [])
        return _predict_videos(videos, every_weights, Path(out), settings, reading, where, images, as_json)
    _refuse([*reading, *places], "videos")
    _predict_images(sources, every_weights, Path(out), settings, images, as_json)


def _refuse(given: Sequence[str], what: str) -> None:
    if given:
        raise SettingError(f"{', '.join(given)}: for {what} only")


def _predict_on_ray(sources: list[str], weights: str, out: str, settings: dict[str, Any], as_json: bool) -> None:
    from efficientdet.cluster import predict_on_ray

    if len(sources) > 1:
        raise SettingError("sources: with --ray, give one folder or bucket; each wants a command and --out of its own")
    # Ray tells on standard output of workers that have died.
    with progress_bar(as_json) as progress, contextlib.redirect_stdout(sys.stderr):
        task = progress.add_task("predicting")
        run = predict_on_ray(
            sources[0], out, weights,
            progress=lambda done, parts: progress.update(task, completed=done, total=parts), **settings,
        )  # fmt: skip
    if as_json:
        print_json(run)
    else:
        say(f"{run['images']} images, {run['unreadable']} of them unreadable; written to {without_password(out)}/")
    if run["unreadable"]:
        complain(f"{run['unreadable']} of {run['images']} images failed; the column `error` says why")
        raise typer.Exit(1)


def _load(weights: tuple[str, ...], settings: dict[str, Any], are_few: bool) -> Detector:
    """The detector, or the ensemble."""
    from efficientdet.exporting.cold_start import load_quickly
    from efficientdet.inference.detector import load

    if len(weights) > 1 or set(settings) & names_of(EnsembleSettings).keys():
        from efficientdet.inference.ensemble import ensemble

        return ensemble(*weights, **settings)
    return (load_quickly if are_few else load)(weights[0], **settings)


def _predict_images(
    sources: list[str], weights: tuple[str, ...], out: Path, settings: dict[str, Any], is_annotated: bool, as_json: bool
) -> None:
    from efficientdet.images.find import find_images, output_names

    found, problems = find_images(sources)
    targets = [out / name for name in output_names(found)] if is_annotated else []
    spare_originals(found, targets)

    detector = _load(weights, settings, len(found) <= FEW)
    results = RunResults(out / "detections.json", _facts(weights, detector), len(found))
    with results, progress_bar(as_json) as progress:
        for problem in problems:
            results.fail(problem.place, str(problem))
        _predict_all(detector, found, targets, results, progress)
    _conclude(results, "detections", len(found) + len(problems), as_json)


def _predict_videos(
    videos: list[str],
    weights: tuple[str, ...],
    out: Path,
    settings: dict[str, Any],
    reading: dict[str, Any],
    places: tuple[list[str], list[Path]],
    is_annotated: bool,
    as_json: bool,
) -> None:
    from efficientdet.cli.predict_video import counters_of, predict_videos
    from efficientdet.images.find import output_names
    from efficientdet.video.frames import file_name

    targets = [out / name for name in output_names([file_name(video) for video in videos], ".mp4")]
    spare_originals(videos, targets)
    make_counters = counters_of(*places, reading.get("track"))
    detector = _load(weights, settings, are_few=False)
    with RunResults(out / "detections.json", _facts(weights, detector), len(videos), "videos") as results:
        predict_videos(
            videos, targets, detector, results, reading,
            make_counters=make_counters, is_annotated=is_annotated, is_quiet=as_json,
        )  # fmt: skip
    _conclude(results, "boxes", len(videos), as_json)


def _facts(weights: tuple[str, ...], detector: Detector) -> dict[str, Any]:
    return {"weights": weights[0] if len(weights) == 1 else weights, "engine": str(detector.engine)}


def _conclude(results: RunResults, boxes: str, total: int, as_json: bool) -> None:
    """Say what was done; exit with 1 where something failed."""
    if as_json:
        print_json({results.things: results.images, "failures": results.failures})
    else:
        counts = [one if isinstance(one := entry[boxes], int) else len(one) for entry in results.images]
        where = f"written to {results.path.parent}/ ({results.facts['engine']})"
        say(f"{len(counts)} {results.things}, {sum(counts)} boxes; {where}")
    if results.failures:
        complain(f"{len(results.failures)} of {total} {results.things} failed")
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
