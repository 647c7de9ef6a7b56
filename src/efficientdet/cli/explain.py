"""explain: what a trained network's fusion weighs, and what carried one detection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.atomic_write import write_text
from efficientdet.cli.options import Device, Json, app, complain, print_table, say

if TYPE_CHECKING:
    from efficientdet.inference.detector import Detector
    from efficientdet.research.explanation import Explanation


@app.command()
def explain(
    weights: Annotated[str, typer.Argument(help="Bundled name or checkpoint.")],
    picture: Annotated[Path | None, typer.Argument(help="Explain a detection in this picture.")] = None,
    detection: Annotated[int, typer.Option(help="Which detection, from 0, best first.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the drawings.")] = Path("explain"),
    score_threshold: Annotated[float, typer.Option(help="Look at detections of at least this score.")] = 0.3,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain a network: fusion weights as a heat map; for a picture, what carried one of its detections.

    For the detection: pyramid level, cell and anchor, the runner-up classes, and how much each edge of the feature
    network contributed to its logit (gradient x activation).

    Example: `efficientdet explain people photo.jpg --detection 0 --out explain`
    """
    from efficientdet.inference.detector import load
    from efficientdet.research.explanation import NothingFoundError, explain_detection

    detector = load(weights, device=device, score_threshold=score_threshold)
    report, lines = _explain_fusion(detector, weights, out)
    explanation = None
    if picture is not None:
        try:
            explanation = explain_detection(detector, picture, detection)
        except NothingFoundError as error:
            complain(f"{picture}: {error}")
            raise typer.Exit(1) from error
        written = _draw_detection(explanation, out)
        report |= {"picture": str(picture), "detection": explanation.to_json()}
        report["written"] += written
        lines += [f"written: {path}" for path in written]
    if as_json:
        print(json.dumps(report))
        return
    if explanation is not None:
        _print_explanation(explanation, picture)
    for line in lines:
        say(line)


def _explain_fusion(detector: Detector, weights: str, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Draw the heat map, where there is something learned; the report on it, and lines to print."""
    from efficientdet.research.explanation import fusion_rows
    from efficientdet.research.explanation_figures import draw_fusion, save_figure

    spec = detector.info.spec
    rows = fusion_rows(detector.model.feature_network)
    report = {"weights": weights, "feature_network": spec.feature_network, "fusion": spec.fusion, "rows": rows}
    if not any(row["is_learned"] for row in rows):
        note = (
            f"fusion weights: none to draw. The nodes of '{weights}' (fusion '{spec.fusion}') add their inputs without "
            "weights: each has the same share by construction"
        )
        return report | {"note": note, "written": []}, [note]
    path = out / "fusion.png"
    name = "/".join(Path(weights).parts[-2:])  # of a run, the folder tells more than `best`
    title = f"{name}: how the nodes of {spec.feature_network} weigh their inputs"
    save_figure(draw_fusion(rows, title, spec.fusion), path)
    return report | {"written": [str(path)]}, [f"written: {path}"]


def _draw_detection(explanation: Explanation, out: Path) -> list[str]:
    from efficientdet.research.explanation_figures import draw_cells, draw_explanation, save_figure

    name = f"detection-{explanation.index}"
    save_figure(draw_explanation(explanation), out / f"{name}.png")
    written = [str(out / f"{name}.png")]
    for cell, drawing in enumerate(draw_cells(explanation)):
        path = out / f"{name}-cell-{cell}.svg"
        write_text(path, drawing)
        written.append(str(path))
    return written


def _print_explanation(explanation: Explanation, picture: Path | None) -> None:
    anchor = explanation.anchor

    def pixels(box: tuple[float, ...]) -> str:
        return ", ".join(f"{side:.0f}" for side in box)

    down, across = anchor.stride
    shape = f"octave {anchor.octave}, aspect {anchor.aspect[0]:.3g} x {anchor.aspect[1]:.3g}"
    facts = {
        "class": f"{explanation.class_name} {explanation.score:.3f} (logit {explanation.logit:.2f})",
        "others at this anchor": ", ".join(
            f"{name} {p:.3f}" for name, p in explanation.classes if name != explanation.class_name
        ) or "-",
        "box": pixels(explanation.box_xyxy),
        "level": f"P{anchor.level}, stride {down:g}" + (f" x {across:g}" if across != down else ""),
        "cell": f"row {anchor.row}, column {anchor.column}",
        "anchor": f"{pixels(anchor.box_xyxy)}; {shape}",
        "IoU of anchor and box": f"{explanation.anchor_iou:.3f}",
        "candidates suppressed": explanation.suppressed,
    }  # fmt: skip
    title = f"detection {explanation.index}" + (f" in {picture.name}" if picture else "")
    print_table(title, ({"": key, " ": value} for key, value in facts.items()), ("", " "))
    levels = [
        {"features": f"P{level}", "contribution": f"{part:.3f}", "share": f"{share:.1%}"}
        for level, (part, share) in explanation.levels.items()
    ]
    print_table("features of the backbone: contribution to the logit", levels, ("features",))
    steps = [
        {
            "cell": edge.cell, "edge": f"{edge.input} > {edge.node}", "contribution": f"{edge.contribution:.3f}",
            "share of the node": f"{edge.share:.1%}",
        }
        for edge in explanation.path
    ]  # fmt: skip
    print_table(f"strongest path, {explanation.path_share:.1%} of all", steps, ("edge",))
