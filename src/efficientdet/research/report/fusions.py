"""Section 3 of the report: the speed of fusions in one run, and how far their results agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from efficientdet.family import MODELS, ModelSpec, level_sizes
from efficientdet.inference.benchmark import Spread
from efficientdet.inference.timing import time_in_turns
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.network.fusion import EPSILON, FUSIONS, Fusion
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.research.edges import learned_weights
from efficientdet.research.peers import FAST_OVER_SOFTMAX
from efficientdet.text import markdown_table

# The model whose feature network is timed and compared.
SPEC = MODELS["d0"]
ROUNDS = 40

# How raw weights of fast, and of softmax, are made from random numbers of 0.5 to 1.5, by what to call them.
RAW_WEIGHTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "all 1, as training starts": (torch.ones_like, torch.ones_like),
    "different, with the same normalized weights": (Tensor.clone, torch.log),
    "the same, with different normalized weights": (Tensor.clone, Tensor.clone),
}


def fusions_parts(device: str | None) -> dict[str, str]:
    """The texts and tables.

    Args:
        device: where the fusions are timed, `cpu` or `cuda`; None for no timing.
    """
    return {
        "speed": "Not measured.\n" if device is None else _speed(fusion_times(SPEC, device)),
        "fused": SPEC.name,
        "epsilon": f"{EPSILON:g}",
        "agreement": markdown_table(agreement(SPEC)),
    }


def make_network(spec: ModelSpec, fusion: str) -> tuple[FeatureNetwork, list[Tensor]]:
    """A feature network with random convolutions, and noise as its input: the same for every fusion, at every call.

    Returns:
        The network, in evaluation mode, and [P3, P4, P5], (1, C, h, w) each.
    """
    sizes = level_sizes((spec.image_size, spec.image_size), spec.levels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EfficientDet(dataclasses.replace(spec, fusion=fusion), 1).eval()
        features = [torch.randn(1, C, *size) for C, size in zip(model.backbone.channels, sizes, strict=False)]
    return model.feature_network, features


def fusion_times(spec: ModelSpec, device: str, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of the feature network with each fusion, in turns, by kind of fusion."""
    works = {}
    for kind in FUSIONS:
        network, features = make_network(spec, kind)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = [x.to(device).contiguous(memory_format=torch.channels_last) for x in features]
        works[kind] = partial(network, inputs)
    return time_in_turns(works, device, rounds)


def _speed(found: Mapping[str, Sequence[float]]) -> str:
    ratios = {kind: [a / b for a, b in zip(values, found["fast"], strict=True)] for kind, values in found.items()}
    rows = [
        {"fusion": kind, "ms": Spread.of(values).text(1), "over fast's": Spread.of(ratios[kind]).text(2)}
        for kind, values in found.items()
    ]
    return (
        f"The feature network of {SPEC.name} in PyTorch: float32, batch 1, in rounds in which each fusion runs once. "
        "Median of the rounds, least and largest in brackets. On the paper's GPU, whole detectors with softmax took "
        f"{min(FAST_OVER_SOFTMAX)}-{max(FAST_OVER_SOFTMAX)} times as long as with fast; here the feature network takes "
        f"{median(ratios['softmax']):.2f} times as long. In exported files the normalized weights are constants, so "
        f"that the two cost the same.\n\n{markdown_table(rows)}"
    )


@torch.no_grad()
def agreement(spec: ModelSpec) -> list[dict[str, Any]]:
    """How far the outputs with fast fusion are from those with softmax.

    Returns:
        One row for each of `RAW_WEIGHTS`: the largest difference of a normalized weight; and the largest difference of
        an output on any level, over the largest output with softmax.
    """
    network, features = make_network(spec, "fast")
    rows = []
    for name, makers in RAW_WEIGHTS.items():
        weights, outputs = [], []
        for kind, make in zip(("fast", "softmax"), makers, strict=True):
            generator = torch.Generator().manual_seed(2)
            for fuse in network.modules():
                if isinstance(fuse, Fusion) and fuse.weights is not None:
                    fuse.kind = kind
                    fuse.weights.copy_(make(torch.rand(len(fuse.weights), generator=generator) + 0.5))
            weights.append(torch.tensor([edge.value for edge in learned_weights(network)]))
            outputs.append(torch.cat([x.flatten() for x in network(features)]))
        of_weights, of_outputs = (float((fast - softmax).abs().max()) for fast, softmax in (weights, outputs))
        rows.append(
            {
                "raw weights": name,
                "normalized weights differ by": f"{of_weights:.1e}",
                "outputs differ by": f"{of_outputs / float(outputs[1].abs().max()):.1e}",
            }
        )
    return rows
