"""show: a drawing of a feature network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientdet.atomic_write import write_text
from efficientdet.cli.options import app, say
from efficientdet.errors import SettingError


@app.command()
def show(
    feature_network: Annotated[
        str,
        typer.Argument(
            help="bifpn, fpn, panet, simplified-panet, nas-fpn, fully-connected; a YAML file of nodes; or a checkpoint."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="SVG file to write.")],
    levels: Annotated[
        tuple[int, int], typer.Option(help="Finest and coarsest pyramid level; not used for a checkpoint.")
    ] = (3, 7),
    cell: Annotated[int, typer.Option(help="Cell of a checkpoint to draw, from 0.")] = 0,
) -> None:
    """Draw one cell of a feature network as SVG; of a checkpoint, with its learned fusion weights as edge widths.

    Example: `efficientdet show bifpn --out bifpn.svg`
    """
    from efficientdet.network.graph_file import GRAPH_SUFFIXES, read_graph
    from efficientdet.network.topology import build_topology
    from efficientdet.research.draw_topology import draw_topology

    suffix = Path(feature_network).suffix
    if suffix == ".safetensors":
        from efficientdet.research.learned_weights import edge_shares
        from efficientdet.weights.checkpoint import load_checkpoint

        network = load_checkpoint(feature_network)[0].feature_network
        if not 0 <= cell < len(network.cells):
            raise SettingError(f"--cell {cell}: the network has cells 0 to {len(network.cells) - 1}")
        drawing = draw_topology(network.topology, edge_shares(network, cell))
    elif suffix in GRAPH_SUFFIXES:
        drawing = draw_topology(read_graph(feature_network, levels))
    else:
        drawing = draw_topology(build_topology(feature_network, levels))
    write_text(out, drawing)
    say(f"written: {out}")
