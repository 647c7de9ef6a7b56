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
    from efficientdet.exporting.quantize import QuantizationReport

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
    from efficientdet.exporting.quantize import QuantizationError
    from efficientdet.exporting.quantize import quantize as run
    from efficientdet.inference.detector import load

    own, loading = divided(settings, QuantizeSettings, DetectorSettings)
    try:
        report = run(load(weights, device="cpu", **loading), data, out, **own)
    except QuantizationError as error:
        _print(error.report, as_json)
        complain(f"error: {error}")
        raise typer.Exit(1) from None
    _print(report, as_json)
    if not as_json:
        say(f"written: {out}")


def _print(report: QuantizationReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    parity = report.parity
    row = {"file": report.file, "MB": f"{report.size_bytes / 1e6:.1f}"}
    if parity is not None and parity.ap is not None and parity.reference_ap is not None:
        row |= {"AP fp32": f"{parity.reference_ap:.2f}", "AP int8": f"{parity.ap:.2f}"}
        row["difference"] = f"{parity.ap - parity.reference_ap:+.2f}"
    print_table("quantized to int8", [row], ("file",))
    if report.levels:
        rows = [
            {"output": level.output, "mean difference": f"{level.mean:.3g}", "largest": f"{level.maximum:.3g}",
             "standard deviation": f"{level.spread:.3g}"}
            for level in report.levels
        ]  # fmt: skip
        print_table("difference from float32, by level", rows, ("output",))
