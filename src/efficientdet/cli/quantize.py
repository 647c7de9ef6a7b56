"""quantize: a detector -> a file of 8-bit integers, with what it cost in AP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efficientdet.cli.options import Json, Size, app, complain, print_table, say

if TYPE_CHECKING:
    from efficientdet.exporting.quantize import QuantizationReport


@app.command()
def quantize(
    weights: Annotated[str, typer.Argument(help="Bundled name or checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set that it was trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .xml for openvino, .onnx otherwise.")],
    to: Annotated[str, typer.Option(help="openvino or onnxruntime.")] = "openvino",
    pictures: Annotated[int, typer.Option(help="How many pictures show the ranges of the network's numbers.")] = 300,
    split: Annotated[str, typer.Option(help="Which split they are from.")] = "train",
    check: Annotated[str, typer.Option(help="The split on which AP is compared; none to leave that out.")] = "val",
    preset: Annotated[str, typer.Option(help="OpenVINO's: performance, or mixed: closer and slower.")] = "performance",
    image_size: Size = None,
    as_json: Json = False,
) -> None:
    """Quantize to int8 after training; exits with 1, and writes nothing, where AP changes by over a point.

    Example: `efficientdet quantize people --data people/ --to openvino --out people.xml`
    """
    from efficientdet.exporting.quantize import QuantizationError
    from efficientdet.exporting.quantize import quantize as run
    from efficientdet.inference.detector import load

    original = load(weights, device="cpu", image_size=image_size)
    detector = original
    try:
        report = run(
            detector, data, out, to=to, pictures=pictures, split=split, preset=preset,
            check=None if check == "none" else check, reference=original,
        )  # fmt: skip
    except QuantizationError as error:
        _print(error.report, as_json)
        complain(f"error: {error}")
        raise typer.Exit(1) from None
    _print(report, as_json)
    if not as_json:
        say(f"written: {out}")


def _print(report: QuantizationReport, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict()))
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
             "spread of the output": f"{level.spread:.3g}"}
            for level in report.levels
        ]  # fmt: skip
        print_table("against float32, by level", rows, ("output",))
