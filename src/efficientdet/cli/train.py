"""train: a data set, and a detector out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from efficientdet.cli.options import Device, FeatureNetwork, Fusion, Json, Size, app, out_console, say


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="d0-d7x, lite0-lite4; see `efficientdet models`.")],
    data: Annotated[Path, typer.Option(help="Folder with train (and val) annotations, or one COCO JSON.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; default runs/N.")] = None,
    feature_network: FeatureNetwork = None,
    fusion: Fusion = None,
    backbone: Annotated[
        str | None, typer.Option(help="In place of the model's own: b0-b7, lite0-lite4, resnet18-101, timm:NAME.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", help="Start from this detector; new classes get a new head.")
    ] = None,
    backbone_weights: Annotated[
        str | None, typer.Option(help="Start the backbone alone: a detector, or a .npz of folded ImageNet weights.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out pictures whose file is missing.")
    ] = False,
    allow_no_boxes: Annotated[bool, typer.Option("--allow-no-boxes", help="Train on a set without any box.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Pictures a step on each device.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Steps whose gradients are added.")] = 1,
    image_size: Size = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default from the batch size.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    warmup_epochs: Annotated[float, typer.Option(help="Epochs of rising learning rate.")] = 1.0,
    ema_decay: Annotated[float, typer.Option(help="Of the averaged weights; 0 for none.")] = 0.9998,
    scale_jitter: Annotated[
        tuple[float, float] | None, typer.Option(help="Range of scales; default by the number of epochs.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    batch_norm: Annotated[str, typer.Option(help="Backbone statistics: auto, train or frozen.")] = "auto",
    backbone_rate: Annotated[float, typer.Option(help="Factor on the backbone's learning rate.")] = 1.0,
    layer_decay: Annotated[float, typer.Option(help="Each stage learns this much slower than the one above.")] = 1.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, 40 % more time.")
    ] = False,
    frozen_stages: Annotated[int, typer.Option(help="Stages of the backbone that do not learn, 0-7.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Epochs between evaluations.")] = 1,
    save_every: Annotated[int, typer.Option(help="Steps between saves of the resumable state.")] = 200,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Loader processes.")] = None,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(help="How many devices.")] = 1,
    as_json: Json = False,
) -> None:
    """Train a detector on your pictures; keeps the best and the last checkpoint.

    Example: `efficientdet train lite0 --data dataset/ --weights people --epochs 30`
    """
    from efficientdet.training.run import train as run_training

    run = run_training(
        model, data, feature_network=feature_network, fusion=fusion, backbone=backbone, weights=weights,
        backbone_weights=backbone_weights, out=out, resume=resume,
        skip_missing=skip_missing, quiet=as_json, allow_no_boxes=allow_no_boxes, epochs=epochs,
        batch_size=batch_size, accumulate=accumulate, image_size=image_size, learning_rate=learning_rate,
        optimizer=optimizer, warmup_epochs=warmup_epochs, ema_decay=ema_decay, scale_jitter=scale_jitter,
        precision=precision, batch_norm=batch_norm, backbone_rate=backbone_rate, layer_decay=layer_decay,
        frozen_stages=frozen_stages, gradient_checkpointing=gradient_checkpointing,
        evaluate_every=evaluate_every, save_every=save_every, seed=seed, workers=workers, device=device,
        devices=devices,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"best": str(run.best), "last": str(run.last), **run.report}))
        return
    if run.metrics is not None:
        out_console.print(run.metrics.table())
    if run.report["skipped_steps"]:
        say(f"steps skipped: {len(run.report['skipped_steps'])}; see {run.folder}/report.json")
    say(f"best checkpoint: {run.best}")
