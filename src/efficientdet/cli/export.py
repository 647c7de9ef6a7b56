"""export, quantize: a detector as a file for another runtime, with the comparison that proves it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.cli.options import Json, app, complain, print_json, print_table, say, takes_settings
from efficientdet.errors import SettingError
from efficientdet.exporting.settings import ExportSettings, QuantizeSettings
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings
from efficientdet.settings import divided

if TYPE_CHECKING:
    from efficientdet.exporting.parity import ParityReport

# Of a detector's settings, those that have no effect on a file.
NO_EFFECT = ("device", "backend", "precision", "rectangular", "reduced_decoding")
Weights = Annotated[str, typer.Argument(help="Bundled or released model, checkpoint, or hf://owner/repo.")]


@app.command()
@takes_settings(ExportSettings, DetectorSettings, PostprocessSettings, stored=PostprocessSettings, leave_out=NO_EFFECT)
def export(
    weights: Weights,
    settings: dict[str, Any],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; for Triton, a folder.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to compare on; by default the sample image.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset on which AP is compared too.")] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "val",
    check: Annotated[
        Path | None, typer.Option(help="An exported file to compare again, instead of writing one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a detector for another runtime, and prove it equal on real images before the file takes its place.

    A file that is too far from the float32 network is not written: raw outputs differ by over 1e-4 of the largest, or
    AP by over 0.1 points (--half: 1e-2 and 0.5; int8: AP 1 point). The command names the first layer that differs and
    exits with 1.

    Example: `efficientdet export people --out people.onnx --end-to-end`
    """
    from efficientdet.exporting.export import export as run_export
    from efficientdet.exporting.parity import ParityError, check_file
    from efficientdet.exporting.settings import find_format
    from efficientdet.inference.detector import load

    target = out or check
    if target is None or (out and check):
        raise SettingError("give --out FILE to write one, or --check FILE to compare one")
    own, loading, post = divided(settings, ExportSettings, DetectorSettings, PostprocessSettings)
    to = find_format(own.get("to"), target)
    detector = load(weights, device="cpu", **loading, **post)
    try:
        if check is None:
            report = run_export(detector, target, images=images, data=data, split=split, **own)
        else:
            report = check_file(detector, check, to, images=images, data=data, split=split)
            if report.failures:
                raise ParityError(report)
    except ParityError as error:
        _end(error.report, as_json, f"error: {error}" + ("" if check else f"; not written: {target}"))
    _end(report, as_json, written=None if check else target)


@app.command()
@takes_settings(
    QuantizeSettings, DetectorSettings, PostprocessSettings, stored=PostprocessSettings, leave_out=NO_EFFECT
)
def quantize(
    weights: Weights,
    data: Annotated[Path, typer.Option(help="Folder of the dataset that it was trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .xml to write, for OpenVINO; its .bin goes beside it.")],
    settings: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Quantize a trained detector to int8; exits with 1, and writes nothing, where AP changes by over a point.

    Example: `efficientdet quantize people --data people/ --out people.xml`
    """
    from efficientdet.exporting.export import quantize as run
    from efficientdet.exporting.parity import ParityError
    from efficientdet.inference.detector import load

    own, loading, post = divided(settings, QuantizeSettings, DetectorSettings, PostprocessSettings)
    try:
        report = run(load(weights, device="cpu", **loading, **post), data, out, **own)
    except ParityError as error:
        _end(error.report, as_json, f"error: {error}; not written: {out}")
    _end(report, as_json, written=out)


def _end(report: ParityReport, as_json: bool, fault: str = "", written: Path | None = None) -> None:
    """Print a comparison, and what came of it; ends with 1 where there is a fault."""
    if as_json:
        print_json(report.to_dict())
    else:
        rows = [
            {
                "output": difference.output,
                "max": f"{difference.maximum:.2e}",
                "mean": f"{difference.mean:.2e}",
                "standard deviation": f"{difference.spread:.2e}",
                "bound": "-" if difference.bound is None else f"{difference.bound:.2e}",
                "": "kept" if difference.is_kept else "BROKEN",
            }
            for difference in report.differences
        ]
        if report.ap is not None:
            is_kept = abs(report.ap_difference or 0.0) <= report.ap_bound
            rows.append({"output": f"AP {report.ap:.2f}, network {report.reference_ap:.2f}",
                         "max": f"{report.ap_difference:+.2f}", "mean": "", "standard deviation": "",
                         "bound": f"{report.ap_bound}", "": "kept" if is_kept else "BROKEN"})  # fmt: skip
        say(f"{report.file} ({report.precision}) minus the network in PyTorch float32, on {report.images} images")
        print_table("", rows, ("output", ""))
    if fault:
        complain(fault)
        raise typer.Exit(1)
    if written is not None and not as_json:
        parts = [written, written.with_suffix(".bin")] if written.suffix == ".xml" else [written]
        parts = [part for part in written.rglob("*") if part.is_file()] if written.is_dir() else parts
        say(f"written: {written}, {sum(part.stat().st_size for part in parts) / 1e6:.1f} MB")
