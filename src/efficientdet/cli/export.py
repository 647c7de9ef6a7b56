"""export: a detector as a file for another runtime, with the comparison that proves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.cli.options import Json, Size, app, complain, print_table, say
from efficientdet.errors import SettingError

if TYPE_CHECKING:
    from efficientdet.exporting.parity import ParityReport


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Bundled or released name, or checkpoint.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write.")] = None,
    to: Annotated[
        str | None, typer.Option(help="onnx, openvino, torch-export, executorch, tflite; default by the suffix.")
    ] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Bytes in, boxes out: normalizing, decoding and NMS in the file.")
    ] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", "--dynamic-size", help="Any number of pictures, of any multiple of 128 pixels.")
    ] = False,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Any number of pictures.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the file.")] = False,
    image_size: Size = None,
    score_threshold: Annotated[float, typer.Option(help="End-to-end: drop detections below this score.")] = 0.3,
    iou_threshold: Annotated[float, typer.Option(help="End-to-end: NMS drops boxes that overlap by more.")] = 0.5,
    max_detections: Annotated[int, typer.Option(help="End-to-end: at most so many a picture.")] = 100,
    max_candidates: Annotated[int, typer.Option(help="End-to-end: NMS looks at so many.")] = 1000,
    pictures: Annotated[Path | None, typer.Option(help="Compare on these; default a portrait.")] = None,
    data: Annotated[Path | None, typer.Option(help="Compare AP on this data set too.")] = None,
    split: Annotated[str, typer.Option(help="Which split of it.")] = "val",
    check: Annotated[Path | None, typer.Option(help="Write nothing; compare this file, exported before.")] = None,
    as_json: Json = False,
) -> None:
    """Write a detector for another runtime, and prove it equal on real pictures before the file takes its place.

    Exits with 1, naming the first layer that departs, where the file is too far from the float32 network: outputs
    1e-4 of the largest, AP 0.1 points (--half: 1e-2 and 0.5; int8: AP 1 point).

    Example: `efficientdet export people --out people.onnx --end-to-end`
    """
    from efficientdet.exporting.export import export as run_export
    from efficientdet.exporting.parity import ParityError, check_file
    from efficientdet.exporting.settings import find_format
    from efficientdet.inference.detector import load

    if (out is None) == (check is None):
        raise SettingError("give --out FILE to write one, or --check FILE to compare one")
    target: Path = out or check  # type: ignore[assignment]
    to = find_format(to, target)
    detector = load(
        name, device="cpu", image_size=image_size, score_threshold=score_threshold, iou_threshold=iou_threshold,
        max_detections=max_detections, max_candidates=max_candidates,
    )  # fmt: skip
    comparison: dict[str, Any] = {"pictures": pictures, "data": data, "split": split}
    try:
        if check is not None:
            report = check_file(detector, check, to, **comparison)
        else:
            report = run_export(
                detector, target, to, end_to_end=end_to_end, dynamic_batch=dynamic or dynamic_batch,
                dynamic_size=dynamic, half=half, **comparison,
            )  # fmt: skip
    except ParityError as error:
        report = error.report
    print(json.dumps(report.to_dict())) if as_json else _print_report(report, name)
    if report.failures:
        complain(f"{'; '.join(report.failures)}. The first to depart: {report.departs_at}")
        if check is None:
            complain(f"not written: {target}")
        raise typer.Exit(1)
    if check is None and not as_json:
        size = sum(part.stat().st_size for part in {target, target.with_suffix(".bin")} if part.is_file())
        say(f"written: {target}, {size / 1e6:.1f} MB")


def _print_report(report: ParityReport, name: str) -> None:
    rows = [
        {
            "output": difference.output,
            "max": f"{difference.maximum:.2e}",
            "mean": f"{difference.mean:.2e}",
            "bound": "-" if difference.bound is None else f"{difference.bound:.2e}",
            "": "kept" if difference.is_kept else "BROKEN",
        }
        for difference in report.differences
    ]
    if report.ap is not None:
        kept = abs(report.ap_difference or 0.0) <= report.ap_bound
        rows.append({"output": f"AP {report.ap:.2f}, network {report.reference_ap:.2f}",
                     "max": f"{report.ap_difference:+.2f}", "mean": "", "bound": f"{report.ap_bound}",
                     "": "kept" if kept else "BROKEN"})  # fmt: skip
    say(f"{report.file} ({report.precision}) less {name} in PyTorch float32, on {report.pictures} pictures")
    print_table("", rows, ("output", ""))
