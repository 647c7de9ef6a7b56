"""explain: where one detection comes from, and what carried it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.cli.options import Json, app, complain, print_facts, print_json, print_table, say, takes_settings
from efficientdet.cli.run_results import save_annotated
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings

if TYPE_CHECKING:
    from efficientdet.research.explanation import Explanation


@app.command()
@takes_settings(
    PostprocessSettings,
    DetectorSettings,
    stored=PostprocessSettings,
    leave_out=["backend", "precision", "reduced_decoding", "tiles", "overlap"],
)
def explain(
    weights: Annotated[str, typer.Argument(help="Bundled model, checkpoint, released model, or hf://owner/repo.")],
    image: Annotated[Path, typer.Argument(help="Image of which a detection is explained.")],
    settings: dict[str, Any],
    detection: Annotated[int, typer.Option(help="Number of the detection, best score first, from 0.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the drawings.")] = Path("explain"),
    as_json: Json = False,
) -> None:
    """Explain a detection: its pyramid level, cell and anchor, and the best classes there.

    Also how much each edge of the feature network contributed to its class logit (gradient x activation).

    Example: `efficientdet explain people photo.jpg --detection 0 --out explain`
    """
    import numpy as np

    from efficientdet.detections import Detections
    from efficientdet.images.read import read
    from efficientdet.inference.detector import load
    from efficientdet.research.draw_topology import draw_topology
    from efficientdet.research.explanation import NothingFoundError, explain_detection
    from efficientdet.research.figures import save_figure

    detector, pixels = load(weights, backend="eager", **settings), read(image)
    try:
        explanation = explain_detection(detector, pixels, detection)
    except NothingFoundError as error:
        complain(f"{image}: {error}")
        raise typer.Exit(1) from error
    written = [out / f"detection-{detection}.jpg", out / f"detection-{detection}.svg"]
    anchor, names = explanation.anchor, (explanation.class_name, f"anchor on P{explanation.anchor.level}, IoU")
    boxes = np.array([explanation.box_xyxy, anchor.box_xyxy], np.float32)
    scores = np.array([explanation.score, explanation.anchor_iou], np.float32)
    save_annotated(Detections(boxes, scores, np.arange(2), names, pixels.shape[:2], image=pixels), written[0])
    save_figure(draw_topology(detector.model.feature_network.topology, explanation.edges), written[1])
    if as_json:
        facts = {"weights": weights, "image": str(image), "written": [str(path) for path in written]}
        print_json({**facts, **dataclasses.asdict(explanation)})
        return
    _print_explanation(explanation, f"detection {detection} in {image.name}")
    for path in written:
        say(f"written: {path}")


def _print_explanation(explanation: Explanation, title: str) -> None:
    anchor = explanation.anchor

    def pixels(box: tuple[float, ...]) -> str:
        return ", ".join(f"{side:.0f}" for side in box)

    down, across = anchor.stride
    shape = f"octave {anchor.octave}, aspect {anchor.aspect[0]:.3g} x {anchor.aspect[1]:.3g}"
    facts = {
        "class": f"{explanation.class_name} {explanation.score:.3f} (logit {explanation.logit:.2f})",
        "classes at this anchor": ", ".join(f"{r['class_name']} {r['probability']:.3f}" for r in explanation.classes),
        "box (left, top, right, bottom)": pixels(explanation.box_xyxy),
        "level": f"P{anchor.level}, stride {down:g}" + (f" x {across:g}" if across != down else ""),
        "cell": f"row {anchor.row}, column {anchor.column}",
        "anchor": f"{pixels(anchor.box_xyxy)}; {shape}",
        "IoU of anchor and box": f"{explanation.anchor_iou:.3f}",
        "candidates suppressed": explanation.suppressed,
    }
    print_facts(title, facts)
    levels = [
        {"features": f"P{r['level']}", "contribution": f"{r['contribution']:.3f}", "share": f"{r['share']:.1%}"}
        for r in explanation.levels
    ]
    print_table("features of the backbone: contribution to the logit", levels, ("features",))
    steps = [
        {
            "cell": edge.cell,
            "edge": f"{edge.input} > {edge.node}",
            "contribution": f"{edge.value:.3f}",
            "share of the node": f"{edge.share:.1%}",
        }
        for edge in explanation.path
    ]
    print_table(f"strongest path, {explanation.path_share:.1%} of all", steps, ("edge",))
