"""show: a drawing of a feature network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientdet.cli.options import app, say
from efficientdet.errors import UnknownNameError


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
    from efficientdet.research.draw_topology import draw_topology
    from efficientdet.research.edges import learned_weights
    from efficientdet.research.figures import save_figure
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
