"""Predictions and training steps on an NVIDIA GPU beside effdet's, in one process, in turns.

    python benchmarks/gpu.py d0 d2 --backends eager,compile
    python benchmarks/gpu.py d0 d1 --train

Both sides have the same weights, start from a batch that lies on the GPU (here bytes, there normalized) and end with
boxes in the CPU's memory; "uploaded" starts from letterboxed images in the CPU's memory. effdet is measured in both
layouts, as it is and with its network compiled, CUDA graphs included. Needs effdet 0.4.1 beside this package.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conversation import training_batch
from effdet import DetBenchPredict, DetBenchTrain, get_efficientdet_config
from effdet.factory import create_model_from_config

from efficientdet.inference.benchmark import sample_jpeg
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.engine import open_engine
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.config import TrainConfig
from efficientdet.training.losses import detection_loss
from efficientdet.training.schedule import build_optimizer
from efficientdet.weights.create import random_model
from efficientdet.weights.foreign import to_foreign

KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
ROUNDS = 5
Work = Callable[[], Any]


def peer_network(model: EfficientDet, name: str, kind: torch.dtype, layout: str) -> Any:
    """A network of effdet with the same weights."""
    config = get_efficientdet_config(f"tf_efficientdet_{name}")
    config.backbone_args.drop_path_rate = 0.0
    size = model.spec.image_size
    network = create_model_from_config(
        config, num_classes=model.num_classes, pretrained=False, pretrained_backbone=False, image_size=(size, size)
    )
    network.load_state_dict(to_foreign(model, "effdet"), strict=True)
    return network.to("cuda", kind, memory_format=LAYOUTS[layout])


def peer(model: EfficientDet, name: str, kind: torch.dtype, layout: str, batch: int, compiled: bool) -> Work:
    """A prediction by effdet: network, candidates, NMS."""
    bench = DetBenchPredict(peer_network(model, name, kind, layout)).eval().cuda()
    if compiled:
        bench.model = torch.compile(bench.model, dynamic=False, mode="reduce-overhead")
    side = model.spec.image_size
    images = torch.randn(batch, 3, side, side, device="cuda", dtype=kind).contiguous(memory_format=LAYOUTS[layout])
    info = {
        "img_scale": torch.ones(batch, device="cuda"),
        "img_size": torch.tensor([[side, side]] * batch, device="cuda", dtype=torch.float32),
    }
    return lambda: bench(images, img_info=info).cpu()


def ours(model: EfficientDet, info: Any, precision: Any, backend: Any, batch: int, uploads: bool) -> Work:
    """`Detector.predict` after decoding and letterboxing; without `uploads`, after the copy to the GPU too."""
    detector = Detector(model, info, device="cuda", precision=precision, backend=backend)
    images = [detector._prepare(sample_jpeg())] * batch
    if uploads:
        return lambda: detector._detect(images, detector.postprocess)
    detector.warmup()
    predictor = detector._gpu
    assert predictor is not None
    pixels, facts = (part.cuda() for part in predictor._pinned(images))
    return lambda: predictor._launch(pixels, facts, detector.postprocess)


def network_alone(model: EfficientDet, precision: str, backend: str, batch: int) -> Work:
    """The engine, as a CUDA graph, on a batch on the GPU."""
    run = open_engine(model, backend, precision, "cuda").run
    side = model.spec.image_size
    images = torch.randn(batch, 3, side, side, device="cuda").contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        run(images)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(images)
    return graph.replay


def in_turns(works: dict[str, Work], seconds: float) -> dict[str, float]:
    """Median milliseconds of each; what fails is left out, and said."""
    ready: dict[str, Work] = {}
    for label, work in works.items():
        try:
            for _ in range(4):
                work()
            ready[label] = work
        except Exception as error:  # out of memory, or an operation that the other side lacks
            print(f"  {label}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    spent: dict[str, list[float]] = {label: [] for label in ready}
    for _ in range(ROUNDS):
        for label, work in ready.items():
            end = time.perf_counter() + seconds / ROUNDS / len(ready)
            while not spent[label] or time.perf_counter() < end:
                torch.cuda.synchronize()
                start = time.perf_counter()
                work()
                torch.cuda.synchronize()
                spent[label].append((time.perf_counter() - start) * 1000)
    return {label: statistics.median(times) for label, times in spent.items()}


def predictions(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one network: each batch size, both sides."""
    model, info = random_model(name, None, sample_jpeg())
    rows = []
    for batch in options.batches:
        works: dict[str, Work] = {}
        for precision in options.precisions:
            for backend in options.backends:
                label = f"{backend} {precision}"
                works[label] = later(partial(ours, model, info, precision, backend, batch, False))
                if options.details:
                    works[f"{label}, uploaded"] = later(partial(ours, model, info, precision, backend, batch, True))
                    alone = partial(network_alone, model, precision, backend, batch)
                    works[f"{label}, network alone"] = later(alone)
            for layout in LAYOUTS if options.peer else ():
                one = partial(peer, model, name, KINDS[precision], layout, batch)
                works[f"effdet {precision} {layout}"] = later(partial(one, False))
                if "compile" in options.backends and layout == "NHWC":
                    works[f"effdet {precision} {layout} compiled"] = later(partial(one, True))
        with torch.inference_mode():
            times = in_turns(works, options.seconds)
        for label, milliseconds in times.items():
            rate = 1000 * batch / milliseconds
            rows.append({"network": name, "batch": batch, "side": label, "ms": milliseconds, "images/s": rate})
            print(f"{name} batch {batch:3d} {label:34s} {milliseconds:8.2f} ms {rate:8.0f} images/s", flush=True)
        torch.cuda.empty_cache()
    return rows


def later(make: Callable[[], Work]) -> Work:
    """Work that is made when it first runs."""
    made: list[Work] = []

    def work() -> Any:
        if not made:
            torch._dynamo.reset()
            made.append(make())
        return made[0]()

    return work


def training(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps in bf16 on a batch that lies on the GPU: forward, matching and losses, backward, optimizer."""
    rows = []
    for batch in options.batches:
        model = random_model(name, None, sample_jpeg())[0]
        works = {"here": later(partial(our_step, model, batch))}
        for layout in LAYOUTS if options.peer else ():
            works[f"effdet {layout}"] = later(partial(peer_step, model, name, layout, batch))
        torch.cuda.reset_peak_memory_stats()
        for label, milliseconds in in_turns(works, options.seconds).items():
            rate = 1000 * batch / milliseconds
            rows.append({"network": name, "batch": batch, "side": label, "ms": milliseconds, "images/s": rate})
            print(f"train {name} batch {batch:3d} {label:12s} {milliseconds:8.1f} ms {rate:7.0f} images/s", flush=True)
        torch.cuda.empty_cache()
    return rows


def our_step(model: EfficientDet, batch: int) -> Work:
    """A step of `train`."""
    network = model.to("cuda", memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(network, TrainConfig(learning_rate=1e-4))
    side = network.spec.image_size
    pixels, boxes_xyxy, labels = (torch.from_numpy(part).cuda() for part in training_batch(batch, side))
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            class_logits, box_deltas = network(pixels)
            anchors = network.anchors((side, side))
            loss = detection_loss(class_logits, box_deltas, anchors, list(boxes_xyxy), list(labels)).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def peer_step(model: EfficientDet, name: str, layout: str, batch: int) -> Work:
    """A step of effdet, with the same optimizer."""
    bench = DetBenchTrain(peer_network(model, name, torch.float32, layout), create_labeler=True).train().cuda()
    optimizer = torch.optim.AdamW(bench.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    pixels, boxes_xyxy, labels = (
        torch.from_numpy(part).cuda() for part in training_batch(batch, model.spec.image_size)
    )
    pixels = pixels.contiguous(memory_format=LAYOUTS[layout])
    target = {"bbox": boxes_xyxy[..., [1, 0, 3, 2]].contiguous(), "cls": labels + 1}

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = bench(pixels, target)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--backends", type=lambda text: text.split(","), default=["eager"])
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["fp32", "fp16"])
    parser.add_argument("--batches", type=lambda text: [int(one) for one in text.split(",")], default=[1, 64])
    parser.add_argument("--details", action="store_true", help="the network alone too, and with the images' upload")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="this package alone")
    parser.add_argument("--train", action="store_true", help="training steps instead of predictions")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row of both sides")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    rows = []
    for name in options.networks:
        rows += (training if options.train else predictions)(name, options)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
