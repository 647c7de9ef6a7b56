"""quantize: a detector -> an int8 file, with what it cost in AP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.cli.options import Json, app, complain, print_json, print_table, say, takes_settings
from efficientdet.exporting.settings import QuantizeSettings
from efficientdet.inference.settings import DetectorSettings
from efficientdet.settings import divided

if TYPE_CHECKING:
    from efficientdet.exporting.parity import ParityReport

# Of a detector's settings, those that have no effect on a file.
NO_EFFECT = ("device", "backend", "precision", "rectangular", "reduced_decoding")


@app.command()
@takes_settings(QuantizeSettings, DetectorSettings, leave_out=NO_EFFECT)
def quantize(
    weights: Annotated[str, typer.Argument(help="Bundled or released model, checkpoint, or hf://owner/repo.")],
    data: Annotated[Path, typer.Option(help="Folder of the dataset that it was trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .xml to write, for OpenVINO; its .bin goes beside it.")],
    settings: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Quantize a trained detector to int8; exits with 1, and writes nothing, where AP changes by over a point.

    Example: `efficientdet quantize people --data people/ --out people.xml`
    """
    from efficientdet.exporting.parity import ParityError
    from efficientdet.exporting.quantize import quantize as run
    from efficientdet.inference.detector import load

    own, loading = divided(settings, QuantizeSettings, DetectorSettings)
    try:
        report = run(load(weights, device="cpu", **loading), data, out, **own)
    except ParityError as error:
        print_json(error.report.to_dict()) if as_json else _print(error.report)
        complain(f"error: {error}; not written: {out}")
        raise typer.Exit(1) from None
    if as_json:
        print_json(report.to_dict())
        return
    if report.parity is not None:
        _print(report.parity)
    say(f"written: {out}, {report.size_bytes / 1e6:.1f} MB")


def _print(report: ParityReport) -> None:
    row = {"file": report.file}
    if report.ap is not None and report.reference_ap is not None:
        row |= {"AP fp32": f"{report.reference_ap:.2f}", "AP int8": f"{report.ap:.2f}"}
        row["difference"] = f"{report.ap - report.reference_ap:+.2f}"
    print_table("quantized to int8", [row], ("file",))
    rows = [
        {"output": level.output, "mean difference": f"{level.mean:.3g}", "largest": f"{level.maximum:.3g}",
         "standard deviation": f"{level.spread:.3g}"}
        for level in report.differences
    ]  # fmt: skip
    print_table("difference from float32, by level", rows, ("output",))
