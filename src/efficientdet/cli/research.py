"""explain, show, scale, ablate, report: what the paper compares, and where a detection comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientdet.cli.options import (
    Json,
    app,
    complain,
    print_facts,
    print_json,
    print_table,
    say,
    takes_settings,
    tell_progress,
)
from efficientdet.cli.run_results import save_annotated
from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.inference.settings import DetectorSettings, PostprocessSettings
from efficientdet.research.settings import AblationSettings, ReportSettings
from efficientdet.training.config import TrainConfig

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
    from efficientdet.research.explanation import NothingFoundError, explain_detection
    from efficientdet.research.figures import draw_topology, save_figure

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


@app.command()
def show(
    feature_network: Annotated[
        str,
        typer.Argument(
            help="bifpn, fpn, panet, simplified-panet, nas-fpn, fully-connected; a YAML file of nodes; or weights: a "
            "checkpoint, a bundled or released model, or hf://owner/repo."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, such as .svg or .png.")],
    levels: Annotated[
        tuple[int, int], typer.Option(help="Finest and coarsest pyramid level; not used for weights.")
    ] = (3, 7),
) -> None:
    """Draw a feature network; of weights, every cell with its learned fusion weights as widths of the edges.

    Example: `efficientdet show bifpn --out bifpn.svg`
    """
    from efficientdet.network.graph_file import GRAPH_SUFFIXES, read_graph
    from efficientdet.network.topology import build_topology
    from efficientdet.research.edges import learned_weights
    from efficientdet.research.figures import draw_topology, save_figure
    from efficientdet.weights.checkpoint import load_checkpoint
    from efficientdet.weights.names import find_weights

    note = ""
    try:
        is_file = Path(feature_network).suffix in GRAPH_SUFFIXES
        topology = read_graph(feature_network, levels) if is_file else build_topology(feature_network, levels)
        figure = draw_topology(topology)
    except UnknownNameError as unknown:
        try:
            weights = find_weights(feature_network)
        except UnknownNameError:
            raise unknown from None
        network = load_checkpoint(weights)[0].feature_network
        edges = learned_weights(network)
        figure = draw_topology(network.topology, edges)
        note = "" if edges else " (the nodes add their inputs: there are no fusion weights)"
    save_figure(figure, out)
    say(f"written: {out}{note}")


@app.command()
def scale(
    phi: Annotated[float | None, typer.Option(help="Compound coefficient; fractions give models in between.")] = None,
    target_flops: Annotated[
        str | None, typer.Option(help="Largest number of multiply-adds, such as 10B or 800M.")
    ] = None,
    target_latency: Annotated[
        str | None, typer.Option(help="Longest time of one forward pass in PyTorch, such as 20ms.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device on which latency is measured: cpu or cuda.")] = "cpu",
    arxiv_v1: Annotated[
        bool, typer.Option("--arxiv-v1", help="Depth of the paper's first version: a BiFPN cell less than released.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the model that compound scaling gives for a phi, or the largest one within a budget.

    Without options, print the table for phi 0 to 6 and the law beside it.

    Example: `efficientdet scale --target-flops 10B`
    """
    from efficientdet.family import DepthRule, compound_scaling
    from efficientdet.inference.timing import latency_ms
    from efficientdet.research.scaling import find_phi, scaling_rows
    from efficientdet.weights.model_card import spec_facts

    given = [option for option in (phi, target_flops, target_latency) if option is not None]
    if len(given) > 1:
        raise SettingError("give one of --phi, --target-flops and --target-latency")
    rule: DepthRule = "arxiv-v1" if arxiv_v1 else "released"
    if phi is not None:
        spec = compound_scaling(phi, rule)
    elif target_flops is not None:
        spec = find_phi(_quantity(target_flops, {"M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}), depth_rule=rule)
    elif target_latency is not None:
        target = _quantity(target_latency, {"ms": 1.0, "s": 1000.0})
        spec = find_phi(target, lambda spec: latency_ms(spec, device), rule)
    else:
        rows = scaling_rows()
        print_json(rows) if as_json else print_table("compound scaling", rows)
        return
    facts = {"name": spec.name, **spec_facts(spec)}
    if as_json:
        print_json(facts)
        return
    print_facts(spec.name, facts)
    arguments = spec.name.removeprefix("phi").removesuffix("-arxiv-v1") + (', "arxiv-v1"' if arxiv_v1 else "")
    say(f"in Python: ed.create_model(ed.family.compound_scaling({arguments}))")


def _quantity(text: str, units: dict[str, float]) -> float:
    """A number with a unit, such as `10B` or `20ms`."""
    number, factor = text.strip().lower(), 1.0
    for unit in sorted(units, key=len, reverse=True):
        if number.endswith(unit.lower()):
            number, factor = number[: -len(unit)], units[unit]
            break
    try:
        return float(number) * factor
    except ValueError:
        raise SettingError(f"'{text}' is no number with a unit ({', '.join(units)})") from None


@app.command()
@takes_settings(
    AblationSettings,
    TrainConfig,
    leave_out=["weights", "feature_network", "fusion", "seed", "evaluate_every", "devices", "minutes"],
)
def ablate(
    model: Annotated[str, typer.Argument(help="Model whose backbone, width, depth and heads every trial has.")],
    data: Annotated[Path, typer.Option(help="Folder with train and val annotations.")],
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the trials and of the table.")] = Path("ablation"),
    as_json: Json = False,
) -> None:
    """Train feature networks and fusions with the same settings and seeds, and print a table that compares them.

    Run it again to continue a stopped ablation.

    Example: `efficientdet ablate lite0 --data dataset/ --feature-networks bifpn,fpn --fusions fast --epochs 20`
    """
    from efficientdet.research.ablation import ablate as run_ablation
    from efficientdet.research.ablation import shown_rows

    rows = run_ablation(model, data, out, say=tell_progress, **settings)
    if as_json:
        print_json(rows)
        return
    print_table(f"trained on {data}", shown_rows(rows), ("feature network", "fusion"))
    say(f"written: {out}/ablation.md")


@app.command()
@takes_settings(ReportSettings)
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of report.md and its figures.")],
    settings: dict[str, Any],
) -> None:
    """Repeat the paper's comparisons: write report.md with tables and figures.

    The family beside its peers, feature networks, fusions, and compound scaling. Counting takes one or two minutes.

    Example: `efficientdet report --out report/`
    """
    from efficientdet.research.report import write_report

    say(f"written: {write_report(out, ReportSettings(**settings), say=tell_progress)}")
