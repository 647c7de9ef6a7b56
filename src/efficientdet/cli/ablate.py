"""ablate: feature networks and fusions compared on a data set of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from efficientdet.cli.options import Device, Json, Size, app, complain, print_table, say


@app.command()
def ablate(
    data: Annotated[Path, typer.Option(help="Folder with train and val annotations.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the trials and the table.")] = Path("ablation"),
    model: Annotated[str, typer.Option(help="Backbone, width, depth and heads of every trial.")] = "lite0",
    feature_networks: Annotated[str, typer.Option(help="Names between commas, or all.")] = "all",
    fusions: Annotated[str, typer.Option(help="Names between commas, or all.")] = "all",
    every_pair: Annotated[
        bool,
        typer.Option(
            "--every-pair",
            help="Each network with each fusion; else each network with the fast fusion, and each fusion in BiFPN.",
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(help="Runs of each, with seeds 0, 1, ...")] = 3,
    jobs: Annotated[int, typer.Option(help="Trials at a time, each a process, with a GPU of its own if any.")] = 1,
    backbone_weights: Annotated[str | None, typer.Option(help="What the backbone of every trial starts from.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 8,
    image_size: Size = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default from the batch size.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    scale_jitter: Annotated[
        tuple[float, float] | None, typer.Option(help="Range of scales; default by the number of epochs.")
    ] = None,
    frozen_stages: Annotated[int, typer.Option(help="Stages of the backbone that do not learn, 0-7.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train feature networks and fusions under the same budget and seeds, and write the table that compares them.

    Called again it goes on where it was stopped.

    Example: `efficientdet ablate --data dataset/ --feature-networks bifpn,fpn --fusions fast --seeds 3 --epochs 20`
    """
    from efficientdet.network.fusion import FUSIONS
    from efficientdet.network.topology import TOPOLOGIES
    from efficientdet.research.ablation import ablate as run_ablation

    settings: dict[str, Any] = {
        "backbone_weights": backbone_weights, "epochs": epochs, "batch_size": batch_size, "image_size": image_size,
        "learning_rate": learning_rate, "optimizer": optimizer, "scale_jitter": scale_jitter,
        "frozen_stages": frozen_stages, "precision": precision, "device": device,
    }  # fmt: skip
    rows = run_ablation(
        data, out, model=model, feature_networks=_names(feature_networks, TOPOLOGIES), fusions=_names(fusions, FUSIONS),
        seeds=seeds, every_pair=every_pair, jobs=jobs, say=complain if as_json else say, **settings,
    )  # fmt: skip
    if as_json:
        print(json.dumps(rows))
        return
    shown = [
        {
            "network": row["feature_network"],
            "fusion": row["fusion"],
            "AP": f"{row['ap']:.3f}" + ("" if row["ap_deviation"] is None else f" ± {row['ap_deviation']:.3f}"),
            "to BiFPN": f"{row['ap_difference']:+.3f}",
            "AP50": f"{row['ap50']:.3f}",
            "params M": f"{row['parameters'] / 1e6:.2f}",
            "GMAC": f"{row['multiply_adds'] / 1e9:.2f}",
            "images/s": f"{row['images_per_second']:.1f}",
        }
        for row in rows
    ]
    print_table(f"{seeds} seeds on {data}", shown, ("network", "fusion"))
    say(f"written: {out}/ablation.md")


def _names(text: str, known: Any) -> list[str]:
    return list(known) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
