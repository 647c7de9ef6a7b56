"""explain: how a trained feature network weighs its inputs, and what carried one detection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.atomic_write import write_text
from efficientdet.cli.options import Json, app, complain, print_facts, print_json, print_table, say, takes_settings
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings

if TYPE_CHECKING:
    from efficientdet.inference.detector import Detector
    from efficientdet.research.explanation import Explanation


@app.command()
@takes_settings(
    PostprocessSettings,
    DetectorSettings,
    stored=PostprocessSettings,
    leave_out=["backend", "precision", "reduced_decoding"],
)
def explain(
    weights: Annotated[str, typer.Argument(help="Bundled model, checkpoint, released model, or hf://owner/repo.")],
    settings: dict[str, Any],
    image: Annotated[Path | None, typer.Argument(help="Image of which a detection is explained.")] = None,
    detection: Annotated[int, typer.Option(help="Number of the detection, best score first, from 0.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the figures.")] = Path("explain"),
    as_json: Json = False,
) -> None:
    """Draw the learned fusion weights of a model; with an image, explain one of its detections.

    Of the detection: its pyramid level, cell and anchor, the best classes there, and how much each edge of the feature
    network contributed to its class logit (gradient x activation).

    Example: `efficientdet explain people photo.jpg --detection 0 --out explain`
    """
    from efficientdet.inference.detector import load
    from efficientdet.research.explanation import NothingFoundError, explain_detection

    detector = load(weights, backend="eager", **settings)
    report, lines = _explain_fusion(detector, weights, out)
    explanation = None
    if image is not None:
        try:
            explanation = explain_detection(detector, image, detection)
        except NothingFoundError as error:
            complain(f"{image}: {error}")
            raise typer.Exit(1) from error
        written = _draw_detection(explanation, out)
        report |= {"image": str(image), "detection": explanation.to_json()}
        report["written"] += written
        lines += [f"written: {path}" for path in written]
    if as_json:
        print_json(report)
        return
    if explanation is not None:
        _print_explanation(explanation, f"detection {explanation.index} in {Path(str(image)).name}")
    for line in lines:
        say(line)


def _explain_fusion(detector: Detector, weights: str, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Draw the heat map if weights were learned; the report on them, and lines to print."""
    from efficientdet.research.explanation_figures import draw_fusion
    from efficientdet.research.figures import save_figure
    from efficientdet.research.learned_weights import fusion_rows

    spec = detector.info.spec
    rows = fusion_rows(detector.model.feature_network)
    report = {"weights": weights, "feature_network": spec.feature_network, "fusion": spec.fusion, "rows": rows}
    if not any(row["is_learned"] for row in rows):
        note = f"no fusion weights to draw: with fusion '{spec.fusion}', the nodes of '{weights}' add their inputs"
        return report | {"note": note, "written": []}, [note]
    path = out / "fusion.png"
    name = "/".join(Path(weights).parts[-2:])  # of runs/1/best.safetensors, with the run
    title = f"{name}: how the nodes of {spec.feature_network} weigh their inputs"
    save_figure(draw_fusion(rows, title, spec.fusion), path)
    return report | {"written": [str(path)]}, [f"written: {path}"]


def _draw_detection(explanation: Explanation, out: Path) -> list[str]:
    from efficientdet.research.explanation_figures import draw_cells, draw_explanation
    from efficientdet.research.figures import save_figure

    name = f"detection-{explanation.index}"
    save_figure(draw_explanation(explanation), out / f"{name}.png")
    written = [str(out / f"{name}.png")]
    for cell, drawing in enumerate(draw_cells(explanation)):
        path = out / f"{name}-cell-{cell}.svg"
        write_text(path, drawing)
        written.append(str(path))
    return written


def _print_explanation(explanation: Explanation, title: str) -> None:
    anchor = explanation.anchor

    def pixels(box: tuple[float, ...]) -> str:
        return ", ".join(f"{side:.0f}" for side in box)

    down, across = anchor.stride
    others = [f"{name} {p:.3f}" for name, p in explanation.classes if name != explanation.class_name]
    shape = f"octave {anchor.octave}, aspect {anchor.aspect[0]:.3g} x {anchor.aspect[1]:.3g}"
    facts = {
        "class": f"{explanation.class_name} {explanation.score:.3f} (logit {explanation.logit:.2f})",
        "other classes at this anchor": ", ".join(others) or "-",
        "box (left, top, right, bottom)": pixels(explanation.box_xyxy),
        "level": f"P{anchor.level}, stride {down:g}" + (f" x {across:g}" if across != down else ""),
        "cell": f"row {anchor.row}, column {anchor.column}",
        "anchor": f"{pixels(anchor.box_xyxy)}; {shape}",
        "IoU of anchor and box": f"{explanation.anchor_iou:.3f}",
        "candidates suppressed": explanation.suppressed,
    }
    print_facts(title, facts)
    levels = [
        {"features": f"P{level}", "contribution": f"{part:.3f}", "share": f"{share:.1%}"}
        for level, (part, share) in explanation.levels.items()
    ]
    print_table("features of the backbone: contribution to the logit", levels, ("features",))
    steps = [
        {
            "cell": edge.cell,
            "edge": f"{edge.input} > {edge.node}",
            "contribution": f"{edge.contribution:.3f}",
            "share of the node": f"{edge.share:.1%}",
        }
        for edge in explanation.path
    ]
    print_table(f"strongest path, {explanation.path_share:.1%} of all", steps, ("edge",))
